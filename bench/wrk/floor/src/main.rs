//! The floor: a proxy on pingora-proxy that does nothing but pass requests through, to the upstreams in turn.
//!
//! usage: larder-wrk-floor PORT THREADS UPSTREAM[,UPSTREAM...]

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, Result};
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;

/// Idle connections kept to all upstreams: more than the benchmark opens.
const POOL: usize = 512;

struct InTurn {
    upstreams: Vec<String>,
    next: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for InTurn {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let n = self.next.fetch_add(1, Ordering::Relaxed) % self.upstreams.len();
        Ok(Box::new(HttpPeer::new(self.upstreams[n].as_str(), false, String::new())))
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [port, threads, upstreams] = args.as_slice() else {
        eprintln!("usage: larder-wrk-floor PORT THREADS UPSTREAM[,UPSTREAM...]");
        return ExitCode::from(64);
    };
    let Ok(threads) = threads.parse() else {
        eprintln!("larder-wrk-floor: THREADS = {threads:?} is no number");
        return ExitCode::from(64);
    };
    let upstreams = upstreams.split(',').map(str::to_owned).collect();
    let conf = ServerConf { threads, upstream_keepalive_pool_size: POOL, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let proxy = InTurn { upstreams, next: AtomicUsize::new(0) };
    let mut service = http_proxy_service(&server.configuration, proxy);
    service.add_tcp(&format!("127.0.0.1:{port}"));
    server.add_service(service);
    server.run_forever();
}
