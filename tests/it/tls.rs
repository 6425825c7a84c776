//! Does the client listener speak TLS, in both versions of HTTP, with certificates that change, past clients that stall?

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder_tests::client;
use larder_tests::program::run;
use larder_tests::world::{Engine, Proxy, chat, config, config_file};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const NAME: &str = "larder.test";

/// A certificate for [`NAME`], and where it lies with its key.
struct Cert {
    der: CertificateDer<'static>,
    cert: PathBuf,
    key: PathBuf,
}

impl Cert {
    fn new() -> Self {
        let cert =
            Self { der: CertificateDer::from(Vec::new()), cert: config_file(""), key: config_file("") };
        Self { der: cert.renew(), cert: cert.cert.clone(), key: cert.key.clone() }
    }

    /// Another one in the same files.
    fn renew(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()]).unwrap();
        std::fs::write(&self.cert, cert.pem()).unwrap();
        std::fs::write(&self.key, signing_key.serialize_pem()).unwrap();
        cert.der().clone()
    }

    fn toml(&self) -> String {
        format!("[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n", self.cert.display(), self.key.display())
    }

    fn remove(self) {
        let _ = (std::fs::remove_file(self.cert), std::fs::remove_file(self.key));
    }
}

/// Shakes hands with the proxy, trusting just this certificate.
async fn shake(
    proxy: &Proxy,
    trusted: &CertificateDer<'static>,
    alpn: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let tcp = TcpStream::connect(proxy.address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), tcp).await
}

fn request(version: &str) -> Request<Full<Bytes>> {
    let uri = if version == "h2" {
        format!("https://{NAME}/v1/chat/completions")
    } else {
        "/v1/chat/completions".to_owned()
    };
    let mut request = Request::post(uri).header(header::CONTENT_TYPE, "application/json");
    if version != "h2" {
        request = request.header(header::HOST, NAME);
    }
    request.body(Full::new(Bytes::from(chat("hello", 4, true)))).unwrap()
}

/// The status and the body of a chat over TLS.
async fn ask(stream: TlsStream<TcpStream>, version: &str) -> (StatusCode, String) {
    let io = TokioIo::new(stream);
    let response = if version == "h2" {
        let (mut sender, driver) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(driver);
        sender.send_request(request(version)).await.unwrap()
    } else {
        let (mut sender, driver) = http1::handshake(io).await.unwrap();
        tokio::spawn(driver);
        sender.send_request(request(version)).await.unwrap()
    };
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, String::from_utf8_lossy(&body).into_owned())
}

fn chosen(stream: &TlsStream<TcpStream>) -> String {
    String::from_utf8_lossy(stream.get_ref().1.alpn_protocol().unwrap_or_default()).into_owned()
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_and_the_client_chooses() {
    let (engine, cert) = (Engine::start(&["--time-scale=1000"]), Cert::new());
    let proxy = Proxy::start(&[&engine], &cert.toml()).await;
    for (offered, expected) in [
        (&["h2", "http/1.1"][..], "h2"),
        (&["http/1.1", "h2"], "h2"),
        (&["h2"], "h2"),
        (&["http/1.1"], "http/1.1"),
        (&[], ""),
    ] {
        let stream = shake(&proxy, &cert.der, offered).await.unwrap();
        assert_eq!(chosen(&stream), expected, "{offered:?}");
        let (status, body) = ask(stream, expected).await;
        assert_eq!(status, 200, "{body}");
        assert!(body.contains("[DONE]"), "{body}");
    }
    proxy.becomes_idle().await;
    // Who trusts another certificate does not get in, who speaks no TLS gets no HTTP, and nobody minds.
    let other = Cert::new();
    assert!(shake(&proxy, &other.der, &["h2"]).await.is_err());
    let mut plain = TcpStream::connect(proxy.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    assert_eq!(client::get(proxy.admin, "/readyz").await.status, 200, "the admin listener is plain");
    other.remove();
    cert.remove();
}

#[tokio::test]
async fn a_handshake_that_stalls_is_bounded_and_in_nobodys_way() {
    let (engine, cert) = (Engine::start(&["--time-scale=1000"]), Cert::new());
    let extra = format!("[timeouts]\nhandshake = \"300ms\"\n{}", cert.toml());
    let proxy = Proxy::start(&[&engine], &extra).await;
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(TcpStream::connect(proxy.address).await.unwrap());
    }
    let stream = shake(&proxy, &cert.der, &["h2"]).await.unwrap();
    assert_eq!(ask(stream, "h2").await.0, 200);
    for mut stream in stalled {
        let closed = tokio::time::timeout(Duration::from_secs(30), stream.read_u8()).await;
        assert!(closed.is_ok_and(|read| read.is_err()), "the proxy closes it");
    }
    proxy.metric_becomes("larder_client_connections", &[], 0.0).await;
    cert.remove();
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_a_bad_one_changes_nothing() {
    let (engine, cert) = (Engine::start(&["--time-scale=1000"]), Cert::new());
    let proxy = Proxy::start(&[&engine], &cert.toml()).await;
    let before = shake(&proxy, &cert.der, &["http/1.1"]).await.unwrap();
    let renewed = cert.renew();
    proxy.program.signal("HUP");
    proxy.metric_becomes("larder_config_reload_total", &["result=\"applied\""], 1.0).await;
    assert!(shake(&proxy, &cert.der, &["h2"]).await.is_err());
    let stream = shake(&proxy, &renewed, &["h2"]).await.unwrap();
    assert_eq!(ask(stream, "h2").await.0, 200);
    assert_eq!(ask(before, "http/1.1").await.0, 200, "who was in stays in");

    // A key of another certificate.
    let other = Cert::new();
    std::fs::copy(&other.key, &cert.key).unwrap();
    proxy.program.signal("HUP");
    proxy.metric_becomes("larder_config_reload_total", &["result=\"refused\""], 1.0).await;
    assert!(proxy.program.log().contains("tls.cert_file and tls.key_file"), "{}", proxy.program.log());
    assert_eq!(ask(shake(&proxy, &renewed, &["h2"]).await.unwrap(), "h2").await.0, 200);
    other.remove();
    cert.remove();
}

#[test]
fn the_check_reads_the_files_and_names_what_is_wrong() {
    let cert = Cert::new();
    let check = |extra: &str| {
        let path = config_file(&config(&["127.0.0.1:1".parse().unwrap()], extra));
        let output = run("larder-proxy", &["--check", "--config", path.to_str().unwrap()]);
        std::fs::remove_file(path).unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(&cert.toml()).0, Some(0));
    let swapped = cert
        .toml()
        .replace("cert_file", "x_file")
        .replace("key_file", "cert_file")
        .replace("x_file", "key_file");
    for (extra, said) in [
        ("[tls]\ncert_file = \"a\"\n", "tls.key_file"),
        ("[tls]\nkey_file = \"a\"\n", "tls.cert_file"),
        ("[tls]\ncert_file = \"does/not/exist\"\nkey_file = \"nor/this\"\n", "does/not/exist"),
        (&swapped, "tls.cert_file"),
    ] {
        let (code, text) = check(extra);
        assert_eq!(code, Some(64), "{text}");
        assert!(text.contains(said), "{said} is not in {text}");
    }
    cert.remove();
}
