//! The frame around a manifest's body, whatever it is a manifest of.
//!
//! ```text
//!   0    8  magic     8  4  format     12  4  body bytes     16  4  crc32c of 0..16 and the body     20  body
//! ```
//! All numbers little endian. A file is one frame, to its last byte.

use crc32c::{crc32c, crc32c_append};

/// Bytes before the body.
pub(crate) const HEADER_BYTES: usize = 20;

/// A kind of framed file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// What it begins with.
    pub(crate) magic: [u8; 8],
    /// The format that this version writes.
    pub(crate) format: u32,
    /// The oldest format that it reads.
    pub(crate) oldest_format: u32,
    /// For messages: `a manifest`.
    pub(crate) name: &'static str,
}

/// Why a file's bytes are no such file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SealedError {
    /// They were changed, or never were one.
    Damaged(String),
    /// They are whole, and of a format of a newer version.
    Unsupported(String),
}

impl std::fmt::Display for SealedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Damaged(because) | Self::Unsupported(because)) = self;
        f.write_str(because)
    }
}

impl From<&str> for SealedError {
    fn from(because: &str) -> Self {
        Self::Damaged(because.to_owned())
    }
}

impl Frame {
    /// A file of `body`, whose length (of 4 bytes, which the caller has checked) is `length`.
    pub(crate) fn seal(&self, body: &[u8], length: [u8; 4]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
        bytes.extend_from_slice(&[0; HEADER_BYTES]);
        bytes.extend_from_slice(body);
        self.seal_around(&mut bytes, length);
        bytes
    }

    /// The same of a body that stands in `bytes` already, behind room for the header.
    pub(crate) fn seal_around(&self, bytes: &mut [u8], length: [u8; 4]) {
        let (header, body) = bytes.split_at_mut(HEADER_BYTES);
        header[..8].copy_from_slice(&self.magic);
        header[8..12].copy_from_slice(&self.format.to_le_bytes());
        header[12..16].copy_from_slice(&length);
        let crc = crc32c_append(crc32c(&header[..16]), body);
        header[16..].copy_from_slice(&crc.to_le_bytes());
    }

    /// The body in a file's bytes, or why there is none.
    pub(crate) fn open<'b>(&self, bytes: &'b [u8]) -> Result<&'b [u8], SealedError> {
        self.open_any(bytes).map(|(_, body)| body)
    }

    /// The same, with the format.
    pub(crate) fn open_any<'b>(&self, bytes: &'b [u8]) -> Result<(u32, &'b [u8]), SealedError> {
        let Some((header, body)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err("it is shorter than a manifest's header".into());
        };
        if header[..8] != self.magic {
            return Err(SealedError::Damaged(format!("it doesn't begin as {} does", self.name)));
        }
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        if number(12) as usize != body.len() {
            return Err(SealedError::Damaged(format!("its body has {} B instead of {}", body.len(), number(12))));
        }
        if crc32c_append(crc32c(&header[..16]), body) != number(16) {
            return Err("its checksum is wrong".into());
        }
        if !(self.oldest_format..=self.format).contains(&number(8)) {
            return Err(SealedError::Unsupported(format!("format {} is not known to this version", number(8))));
        }
        Ok((number(8), body))
    }
}
