//! The same chunks in Redis: SET and GET in one pipeline over a unix socket (the protocol:
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>).

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::node::cpu_of;

/// How long the server may take to listen.
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running server; dropping it kills it.
pub(super) struct Redis {
    child: Child,
    socket: PathBuf,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    /// Starts `redis-server`; none where there is no such program.
    pub(super) fn start(dir: &Path) -> io::Result<Option<Self>> {
        let socket = dir.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
            "--unixsocket",
        ]);
        command.arg(&socket).arg("--dir").arg(dir).stdout(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let redis = Self { child, socket };
        let start = Instant::now();
        while UnixStream::connect(&redis.socket).is_err() {
            if start.elapsed() > START_LIMIT {
                return Err(io::Error::other("redis-server does not listen"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Some(redis))
    }

    /// CPU time it has used.
    pub(super) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    /// Sets so many keys to this value, all in one pipeline.
    pub(super) fn put(&self, count: usize, chunk: &[u8]) -> io::Result<()> {
        let stream = UnixStream::connect(&self.socket)?;
        let answers = stream.try_clone()?;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut answers = BufReader::new(answers);
                (0..count).try_for_each(|_| expect_line(&mut answers, b"+OK"))
            });
            let mut out = BufWriter::with_capacity(64 << 10, stream);
            for key in 0..count {
                let key = format!("chunk-{key:08}");
                write!(out, "*3\r\n$3\r\nSET\r\n${}\r\n{key}\r\n${}\r\n", key.len(), chunk.len())?;
                out.write_all(chunk)?;
                out.write_all(b"\r\n")?;
            }
            out.flush()?;
            reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader ended")))
        })
    }

    /// Gets them back, all in one pipeline.
    pub(super) fn get(&self, count: usize, to: &mut [u8]) -> io::Result<()> {
        let stream = UnixStream::connect(&self.socket)?;
        let mut questions = BufWriter::new(stream.try_clone()?);
        std::thread::scope(|scope| {
            let asker = scope.spawn(move || {
                for key in 0..count {
                    let key = format!("chunk-{key:08}");
                    write!(questions, "*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len())?;
                }
                questions.flush()
            });
            let mut answers = BufReader::with_capacity(64 << 10, stream);
            let length = format!("${}", to.len());
            for _ in 0..count {
                expect_line(&mut answers, length.as_bytes())?;
                answers.read_exact(to)?;
                expect_line(&mut answers, b"")?;
            }
            asker.join().unwrap_or_else(|_| Err(io::Error::other("the asker ended")))
        })
    }
}

fn expect_line(from: &mut impl Read, line: &[u8]) -> io::Result<()> {
    let mut found = vec![0; line.len() + 2];
    from.read_exact(&mut found)?;
    match found.strip_suffix(b"\r\n") == Some(line) {
        true => Ok(()),
        false => Err(io::Error::other(format!("redis answered {:?}", String::from_utf8_lossy(&found)))),
    }
}
