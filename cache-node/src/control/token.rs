//! The bearer token of the control API.

use std::fmt;
use std::path::Path;

use http::HeaderMap;
use http::header::AUTHORIZATION;

/// The longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// A secret that requests must bring as `authorization: Bearer TOKEN`.
#[derive(Clone)]
pub struct Token(Vec<u8>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads a token file; white space around the token is left out.
    ///
    /// # Errors
    /// What is wrong with the file, without what is in it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
        let token = bytes.trim_ascii();
        match token.len() {
            0 => Err("is empty".to_owned()),
            length if length > TOKEN_BYTES_MAX => Err(format!("longer than {TOKEN_BYTES_MAX} bytes")),
            _ => Ok(Self(token.to_vec())),
        }
    }

    /// Whether these headers bring the token. Takes the same time wherever the first difference is.
    pub fn allows(&self, headers: &HeaderMap) -> bool {
        let brought = headers.get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let Some(brought) = brought.strip_prefix(b"Bearer ") else { return false };
        let differences = brought.iter().zip(&self.0).fold(0, |bits, (one, two)| bits | (one ^ two));
        differences == 0 && brought.len() == self.0.len()
    }
}
