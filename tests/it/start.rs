//! Is a configuration checked whole before anything starts, and is a failed start told plainly?

use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use larder_tests::client;
use larder_tests::program::{run, workspace};
use larder_tests::world::{Engine, Proxy, config, config_file};

fn proxy(args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = run("larder-proxy", args);
    assert!(stdout.is_empty() || args.contains(&"--help") || args.contains(&"--version"), "{stdout:?}");
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn check(path: &Path) -> (Option<i32>, String) {
    proxy(&["--config", path.to_str().unwrap(), "--check"])
}

fn with_text<T>(text: &str, then: impl FnOnce(&Path) -> T) -> T {
    let path = config_file(text);
    let result = then(&path);
    std::fs::remove_file(path).unwrap();
    result
}

#[test]
fn both_shipped_configs_pass_the_check() {
    for name in ["proxy.toml", "proxy.minimal.toml"] {
        let (code, text) = check(&workspace().join("config").join(name));
        assert_eq!(code, Some(0), "{name}: {text}");
        assert!(text.contains("ok"), "{text}");
    }
    let minimal = std::fs::read_to_string(workspace().join("config/proxy.minimal.toml")).unwrap();
    assert!(minimal.lines().count() < 15);
}

#[test]
fn every_fault_is_listed_at_once_with_its_key_and_a_hint() {
    let text = "listen = \"nowhere\"\nthread = 2\n[limits]\nmax_body = 0\n[timeouts]\nconnect = 5\n[routing]\n\
                policy = \"larders\"\nrun_bytes = 100\n[[pool]]\n[[pool.endpoint]]\nurl = \"https://x\"\n";
    let (code, report) = with_text(text, check);
    assert_eq!(code, Some(64), "{report}");
    for expected in [
        "listen",
        "nowhere",
        "thread",
        "did you mean",
        "limits.max_body",
        "timeouts.connect",
        "routing.policy",
        "larders",
        "routing.run_bytes",
        "pool[0].model",
        "pool[0].endpoint[0].url",
    ] {
        assert!(report.contains(expected), "{expected} is not in:\n{report}");
    }
    for line in report.lines() {
        assert_eq!(line.matches(".toml: ").count(), 1, "the file, once: {line}");
    }
}

#[test]
fn what_is_no_config_is_exit_64_too() {
    for text in ["", "= 3", "[[pool]]\nmodel = \"m\"", "\u{0}"] {
        let (code, report) = with_text(text, check);
        assert_eq!(code, Some(64), "{text:?}: {report}");
        assert!(!report.trim().is_empty());
    }
    let (code, report) = check(Path::new("does/not/exist.toml"));
    assert_eq!(code, Some(64), "{report}");
    assert!(report.contains("does/not/exist.toml"), "{report}");
    // So is a command line that cannot be read, whichever program it is for.
    for program in ["larder-proxy", "larder-cache-node"] {
        for args in [&["--colour"][..], &[], &["--config"]] {
            let said = run(program, args);
            assert_eq!(said.status.code(), Some(64), "{program} {args:?}: {said:?}");
            assert!(String::from_utf8_lossy(&said.stderr).contains("--help"), "{said:?}");
        }
        let help = run(program, &["--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&help.stdout).contains("Exit status"), "{help:?}");
    }
    // Without --check as well: nothing starts on a bad config.
    let (code, report) = with_text("listen = 3", |path| proxy(&["--config", path.to_str().unwrap()]));
    assert_eq!(code, Some(64), "{report}");
}

#[test]
fn a_wrong_command_line_shows_the_right_one() {
    let (code, text) = proxy(&["--nonsense"]);
    assert!(code.is_some_and(|code| code != 0), "{text}");
    assert!(text.contains("--config"), "{text}");
    assert_eq!(proxy(&["--help"]).0, Some(0));
    assert_eq!(proxy(&["--version"]).0, Some(0));
}

#[tokio::test]
async fn the_minimal_config_starts_and_says_that_it_is_not_ready() {
    let minimal = std::fs::read_to_string(workspace().join("config/proxy.minimal.toml")).unwrap();
    // Its ports and its engines belong to somebody else: free ports, and an engine that nobody is.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text =
        minimal.replace("10.0.0.11:8000", &closed.to_string()).replace("10.0.0.12:8000", "127.0.0.1:1");
    let text = format!("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n{text}");
    let proxy = Proxy::start_unready(&text);
    assert_eq!(client::get(proxy.admin, "/healthz").await.status, 200);
    // Engines count as able until checks say otherwise, three by default and 2 s apart; asked before, they fail.
    let answer = client::post(proxy.address, "/v1/completions", "{}").await;
    assert!(matches!(answer.status.as_u16(), 502 | 503), "{} {}", answer.status, answer.text());
}

#[tokio::test]
async fn a_taken_port_is_a_clear_error() {
    let engine = Engine::start(&[]);
    let running = Proxy::start(&[&engine], "").await;
    for (key, taken) in [("listen", running.address), ("admin", running.admin)] {
        let text = config(&[engine.address], "").replacen(
            &format!("{key} = \"127.0.0.1:0\""),
            &format!("{key} = \"{taken}\""),
            1,
        );
        let (code, report) = with_text(&text, |path| proxy(&["--config", path.to_str().unwrap()]));
        assert_eq!(code, Some(1), "{report}");
        assert!(report.contains(key) && report.contains(&taken.to_string()), "{report}");
        assert!(!report.contains("panicked"), "{report}");
    }
    assert_eq!(client::get(running.admin, "/readyz").await.status, 200, "the other is not disturbed");
}

#[test]
fn what_only_shows_at_the_start_is_told_as_plainly() {
    let endpoint = "127.0.0.1:1".parse().unwrap();
    for (extra, expected) in [
        ("log = \"larder=nonsense\"", "log"),
        ("[routing]\nsecret_file = \"does/not/exist\"", "routing.secret_file"),
    ] {
        let (code, report) =
            with_text(&config(&[endpoint], extra), |path| proxy(&["--config", path.to_str().unwrap()]));
        assert!(matches!(code, Some(1 | 64)), "{code:?} {report}");
        assert!(report.contains(expected), "{report}");
    }
}
