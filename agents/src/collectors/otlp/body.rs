//! The body of an HTTP request: bounded, decompressed, in one of the two encodings.

use std::io::Read;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use flate2::read::MultiGzDecoder;
use futures::StreamExt;

/// How long a body may take to arrive.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/x-protobuf`
    Protobuf,
    /// `application/json`
    Json,
}

impl Encoding {
    /// The encoding of a request, by its content type.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let essence = value.split(';').next().unwrap_or_default().trim();
        if essence.eq_ignore_ascii_case("application/x-protobuf") {
            Some(Self::Protobuf)
        } else if essence.eq_ignore_ascii_case("application/json") {
            Some(Self::Json)
        } else {
            None
        }
    }

    /// As a content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }
}

/// A body that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// More bytes than allowed.
    #[error("the request has more than {limit} bytes, send smaller batches")]
    TooLarge {
        /// Most bytes, compressed and decompressed.
        limit: usize,
    },
    /// A compression that is not gzip.
    #[error("content encoding `{0}` is not supported, use gzip or none")]
    Compression(String),
    /// It says gzip and is not.
    #[error("the request is not valid gzip: {0}")]
    Gzip(std::io::Error),
    /// The connection broke.
    #[error("the request broke off: {0}")]
    Broken(axum::Error),
    /// It came too slowly.
    #[error("the request did not arrive within {} s", READ_TIMEOUT.as_secs())]
    Slow,
}

impl BodyError {
    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Compression(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Gzip(_) | Self::Broken(_) => StatusCode::BAD_REQUEST,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// Reads a body of at most `limit` bytes, compressed as well as decompressed.
///
/// # Errors
/// [`BodyError`]; the rest of a body that is too large is not read.
pub async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<Vec<u8>, BodyError> {
    let compression = compression(headers)?;
    let mut chunks = body.into_data_stream();
    let mut raw = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(BodyError::Broken)?;
        if raw.len() + chunk.len() > limit {
            return Err(BodyError::TooLarge { limit });
        }
        raw.extend_from_slice(&chunk);
    }
    match compression {
        Compression::None => Ok(raw),
        Compression::Gzip => gunzip(&raw, limit),
    }
}

enum Compression {
    None,
    Gzip,
}

fn compression(headers: &HeaderMap) -> Result<Compression, BodyError> {
    let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(Compression::None) };
    match value.to_str().unwrap_or("?").trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        other => Err(BodyError::Compression(other.chars().take(40).collect())),
    }
}

fn gunzip(raw: &[u8], limit: usize) -> Result<Vec<u8>, BodyError> {
    let mut out = Vec::new();
    // One byte more than allowed is enough to know.
    let mut bounded = MultiGzDecoder::new(raw).take(limit as u64 + 1);
    bounded.read_to_end(&mut out).map_err(BodyError::Gzip)?;
    if out.len() > limit {
        return Err(BodyError::TooLarge { limit });
    }
    Ok(out)
}
