//! Does a restart remember who holds what, and is a snapshot that cannot be right left alone?

use std::path::PathBuf;
use std::time::Duration;

use larder_tests::client;
use larder_tests::world::{Engine, Proxy, chat, config, config_file, prose};

/// Where a test keeps its secret and its snapshot.
struct Files {
    secret: PathBuf,
    snapshot: PathBuf,
}

impl Files {
    fn new() -> Self {
        let secret = config_file("a secret of this test");
        let snapshot = secret.with_extension("index");
        Self { secret, snapshot }
    }

    fn toml(&self, every: &str) -> String {
        let (secret, file) = (self.secret.display(), self.snapshot.display());
        format!("[routing]\nsecret_file = \"{secret}\"\n[snapshot]\nfile = \"{file}\"\nevery = \"{every}\"\n")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let new = PathBuf::from(format!("{}.new", self.snapshot.display()));
        for path in [&self.secret, &self.snapshot, &new] {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn engines() -> [Engine; 3] {
    std::array::from_fn(|_| Engine::start(&["--time-scale=1000"]))
}

async fn start(engines: &[Engine], extra: &str) -> Proxy {
    let addresses: Vec<_> = engines.iter().map(|engine| engine.address).collect();
    Proxy::start_with(&config(&addresses, extra)).await
}

/// Where conversations of these sessions go, and how much of each is expected there.
async fn turn(proxy: &Proxy, sessions: u64) -> Vec<(String, u64)> {
    let mut homes = Vec::new();
    for session in 0..sessions {
        let answer = client::chat(proxy.address, &chat(&prose(8_000, session), 2, false)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let matched = answer.header("x-larder-matched-tokens").parse().unwrap();
        homes.push((answer.header("x-larder-endpoint").to_owned(), matched));
        proxy.becomes_idle().await;
    }
    homes
}

async fn ends(mut proxy: Proxy) {
    proxy.program.signal("TERM");
    assert_eq!(proxy.program.exit_code(Duration::from_secs(60)).await, Some(0));
}

#[tokio::test]
async fn a_restart_sends_conversations_to_where_they_were() {
    let (engines, files) = (engines(), Files::new());
    let proxy = start(&engines, &files.toml("1h")).await;
    let before = turn(&proxy, 9).await;
    assert!(before.iter().all(|(_, matched)| *matched == 0));
    ends(proxy).await;

    let proxy = start(&engines, &files.toml("1h")).await;
    let after = turn(&proxy, 9).await;
    for ((home, _), (endpoint, matched)) in before.iter().zip(&after) {
        assert_eq!(home, endpoint);
        assert!(*matched > 1_000, "{matched}");
    }
    ends(proxy).await;

    // Of another secret the chains are others: they are left, and so are those of endpoints that are gone.
    std::fs::write(&files.secret, "another secret").unwrap();
    let proxy = start(&engines, &files.toml("1h")).await;
    assert!(proxy.program.log().contains("taken=0"), "{}", proxy.program.log());
    ends(proxy).await;
    let proxy = start(&engines[..1], &files.toml("1h")).await;
    assert_eq!(proxy.metric("larder_index_elements", &[]).await, 0.0);
    ends(proxy).await;
}

#[tokio::test]
async fn what_is_no_whole_snapshot_is_told_of_and_left() {
    let (engines, files) = (engines(), Files::new());
    let proxy = start(&engines, &files.toml("1h")).await;
    turn(&proxy, 3).await;
    ends(proxy).await;
    let good = std::fs::read(&files.snapshot).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for (bytes, said) in [
        (&flipped[..], "checksum"),
        (&good[..good.len() - 9], "checksum"),
        (&b"[[pool]]\n"[..], "no snapshot of an index"),
        (&[][..], "no snapshot of an index"),
    ] {
        std::fs::write(&files.snapshot, bytes).unwrap();
        let proxy = start(&engines, &files.toml("1h")).await;
        assert_eq!(proxy.metric("larder_index_elements", &[]).await, 0.0, "{said}");
        let log = proxy.program.log();
        assert!(log.contains("snapshot of the index ignored") && log.contains(said), "{log}");
        proxy.program.signal("KILL");
    }
    // The negative control.
    std::fs::write(&files.snapshot, &good).unwrap();
    let proxy = start(&engines, &files.toml("1h")).await;
    assert!(proxy.metric("larder_index_elements", &[]).await > 0.0);
}

/// Killed at any moment, most of them within a write: the file is always whole.
#[tokio::test]
async fn a_kill_while_it_is_written_leaves_the_one_before() {
    let (engines, files) = (engines(), Files::new());
    let proxy = start(&engines, &files.toml("1h")).await;
    turn(&proxy, 12).await;
    ends(proxy).await;
    for n in 0u64..8 {
        let mut proxy = start(&engines, &files.toml("1ms")).await;
        assert!(proxy.metric("larder_index_elements", &[]).await > 0.0, "round {n}: {}", proxy.program.log());
        assert!(!proxy.program.log().contains("ignored"), "{}", proxy.program.log());
        tokio::time::sleep(Duration::from_micros(700 * n)).await;
        proxy.program.signal("KILL");
        proxy.program.exit_code(Duration::from_secs(60)).await;
    }
    // And a half-written one beside it is no obstacle.
    let new = format!("{}.new", files.snapshot.display());
    std::fs::write(new, b"LARDERIX half").unwrap();
    let proxy = start(&engines, &files.toml("1h")).await;
    assert!(turn(&proxy, 12).await.iter().all(|(_, matched)| *matched > 1_000));
    ends(proxy).await;
}
