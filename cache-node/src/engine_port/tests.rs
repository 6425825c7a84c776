use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};

use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.sock");
    drop(StdListener::bind(&path).unwrap());
    assert!(StdStream::connect(&path).is_err(), "left over from the dead");
    let runtime = runtime();
    let _guard = runtime.enter();
    let (_listener, file) = bind(&path, 0o640).unwrap();
    assert!(StdStream::connect(&path).is_ok());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(StdStream::connect(&path).is_ok(), "and it still listens");
    drop(file);
    assert!(!path.exists());
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 0, "nothing is left beside it");
}

#[test]
fn a_file_that_is_no_socket_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.sock");
    fs::write(&path, "precious").unwrap();
    let runtime = runtime();
    let _guard = runtime.enter();
    assert_eq!(bind(&path, 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}
