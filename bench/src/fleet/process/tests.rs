use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("larder-bench-process-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn shell(script: &str, dir: &Folder) -> Process {
    Process::start("engine-7", Path::new("/bin/sh"), &["-c".into(), script.into()], &dir.0).unwrap()
}

#[tokio::test]
async fn addresses_are_read_from_complete_lines() {
    let dir = Folder::new("address");
    let mut process = shell(
        "printf 'listening on http://127.0.0.1:1'; sleep 0.1; printf '234/\\nadmin on http://127.0.0.1:99\\n'; sleep 60",
        &dir,
    );
    assert_eq!(process.address("listening on ").await.unwrap(), "http://127.0.0.1:1234");
    assert_eq!(process.address("admin on ").await.unwrap(), "http://127.0.0.1:99");
    assert_eq!(process.known_address(), "http://127.0.0.1:1234");
    assert!(process.has_died().is_none());
}

#[tokio::test]
async fn a_death_is_told_with_name_status_and_the_last_lines() {
    let dir = Folder::new("death");
    let mut process = shell("for i in $(seq 30); do echo line $i >&2; done; exit 3", &dir);
    let error = process.address("listening on ").await.unwrap_err().to_string();
    for part in ["engine-7", "ended on its own", "3", "line 30", "line 11\n", dir.0.to_str().unwrap()] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("line 10\n"), "{error}");
}

#[tokio::test]
async fn dropping_a_process_ends_it() {
    let dir = Folder::new("drop");
    let mut process = shell("echo pid $$; exec sleep 600", &dir);
    let pid = process.address("pid ").await.unwrap();
    let alive = PathBuf::from(format!("/proc/{pid}/stat"));
    assert!(alive.exists());
    drop(process);
    assert!(!alive.exists());
}

#[test]
fn a_missing_program_is_named() {
    let dir = Folder::new("missing");
    let error = Process::start("proxy", Path::new("/no/such/program"), &[], &dir.0).err().unwrap();
    assert!(error.to_string().contains("cannot start /no/such/program"), "{error}");
}
