//! Requests to the API server for lists and watches: bounded in time and bytes, and with a name for each way to fail.

use std::time::Duration;

use axum::body::BodyDataStream;
use axum::http::request::Builder;
use axum::http::{Request, Response, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tapio_runtime::clock::SharedClock;

use super::snapshot::api::{chain, retry_after};

/// The head of an answer has to come within this time.
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Longest silence within the body of a list.
const LIST_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a page of a list.
const PAGE_BYTES_MAX: usize = 64 << 20;
/// Bytes of one change; the server's own limit of an object is 1.5 MiB, and more than this is no object.
pub const LINE_BYTES_MAX: usize = 8 << 20;
/// Bytes of an answer that tells an error.
const ERROR_BYTES_MAX: usize = 64 << 10;
/// Letters of what a server says in an error.
const ERROR_CHARS_MAX: usize = 200;
/// A server may ask for this much patience.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Why a list or a watch does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The server does not have this kind.
    NotServed,
    /// A permission is missing; what the server says of it.
    Forbidden(String),
    /// The version is forgotten: only a new list helps.
    Expired,
    /// The request itself is not understood.
    Refused(String),
    /// Anything that may pass: what, and how long the server asks to wait.
    Passing(String, Duration),
}

impl Fault {
    /// Something that may pass.
    pub fn passing(reason: impl Into<String>) -> Self {
        Self::Passing(reason.into(), Duration::ZERO)
    }

    /// What a `Status` object says, by its code.
    pub fn of_status(code: u64, message: &str) -> Self {
        let message: String = message.chars().take(ERROR_CHARS_MAX).collect();
        match code {
            403 => Self::Forbidden(message),
            404 => Self::NotServed,
            410 => Self::Expired,
            400 | 422 => Self::Refused(format!("{code}: {message}")),
            401 => Self::passing(format!("{code}: {message}: the credentials are not accepted, renew them")),
            _ => Self::passing(format!("{code}: {message}")),
        }
    }
}

/// Asks one API server.
#[derive(Clone)]
pub struct Server {
    /// Connected to it; does not repeat requests by itself.
    pub client: Client,
    /// Clock of the waits.
    pub clock: SharedClock,
}

impl Server {
    /// The body of a list, as a whole.
    ///
    /// # Errors
    /// [`Fault`]; also when it is longer than allowed or comes too slowly.
    pub async fn page(&self, uri: &str) -> Result<Bytes, Fault> {
        let mut body = self.open(uri).await?;
        let mut page = BytesMut::new();
        while let Some(chunk) = self.within(LIST_SILENCE_MAX, body.next()).await? {
            page.extend_from_slice(&chunk.map_err(|error| broken(&error))?);
            if page.len() > PAGE_BYTES_MAX {
                return Err(Fault::passing(format!(
                    "a page of the list has more than {PAGE_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(page.freeze())
    }

    /// One object.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn document(&self, uri: &str) -> Result<Value, Fault> {
        parsed(&self.page(uri).await?)
    }

    /// Writes an object with `method`; returns it as the server has it then.
    ///
    /// # Errors
    /// [`Fault`]; a conflict with another writer may pass.
    pub async fn write(&self, method: &str, uri: &str, object: &Value) -> Result<Value, Fault> {
        let request =
            Request::builder().method(method).uri(uri).header(header::CONTENT_TYPE, "application/json");
        let body = self.ask(request, Body::from(object.to_string().into_bytes())).await?;
        let body = self.within(HEAD_TIME_MAX, axum::body::to_bytes(body, PAGE_BYTES_MAX)).await?;
        parsed(&body.map_err(|error| broken(&error))?)
    }

    /// A watch: its lines as they come.
    ///
    /// # Errors
    /// [`Fault`], when it does not begin.
    pub async fn lines(&self, uri: &str) -> Result<Lines, Fault> {
        let body = self.open(uri).await?;
        Ok(Lines { server: self.clone(), body, buffer: BytesMut::new(), looked_at: 0, skipped: 0 })
    }

    async fn open(&self, uri: &str) -> Result<BodyDataStream, Fault> {
        self.ask(Request::get(uri), Body::empty()).await.map(axum::body::Body::into_data_stream)
    }

    async fn ask(&self, request: Builder, body: Body) -> Result<axum::body::Body, Fault> {
        let request = request.header(header::ACCEPT, "application/json").body(body);
        let request = request.map_err(|error| Fault::Refused(error.to_string()))?;
        let answer = self.within(HEAD_TIME_MAX, self.client.send(request)).await?;
        let (head, body) = answer.map_err(|error| Fault::passing(chain(&error)))?.into_parts();
        let body = axum::body::Body::new(body);
        if head.status.is_success() {
            return Ok(body);
        }
        let said = self.within(HEAD_TIME_MAX, axum::body::to_bytes(body, ERROR_BYTES_MAX)).await?;
        let answer = Response::from_parts(head, said.unwrap_or_default());
        let said: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let code = answer.status().as_u16().into();
        let fault = Fault::of_status(code, said["message"].as_str().unwrap_or_default());
        Err(match (fault, retry_after(&answer)) {
            (Fault::Passing(reason, _), Some(after)) => Fault::Passing(reason, after.min(RETRY_AFTER_MAX)),
            (fault, _) => fault,
        })
    }

    async fn within<T>(&self, time_max: Duration, work: impl Future<Output = T>) -> Result<T, Fault> {
        tokio::select! {
            done = work => Ok(done),
            () = self.clock.sleep(time_max) => {
                Err(Fault::passing(format!("no answer within {} s", time_max.as_secs())))
            }
        }
    }
}

fn parsed(body: &[u8]) -> Result<Value, Fault> {
    serde_json::from_slice(body).map_err(|error| Fault::passing(format!("the answer is no JSON: {error}")))
}

fn broken(error: &axum::Error) -> Fault {
    Fault::passing(format!("the answer broke off: {}", chain(error)))
}

/// Lines of a watch.
pub struct Lines {
    server: Server,
    body: BodyDataStream,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no end of a line.
    looked_at: usize,
    /// Bytes of a line that is too long, while its end is looked for.
    skipped: usize,
}

/// What comes of a watch.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its end.
    Text(Bytes),
    /// A line of so many bytes, more than [`LINE_BYTES_MAX`], that was not kept.
    TooLong(usize),
    /// The end.
    End,
}

impl Lines {
    /// The next one; an error when nothing comes for so long.
    ///
    /// # Errors
    /// [`Fault::Passing`]: silence, or a connection that broke.
    pub async fn next(&mut self, silence_max: Duration) -> Result<Line, Fault> {
        loop {
            if let Some(line) = self.whole_line() {
                return Ok(line);
            }
            match self.server.within(silence_max, self.body.next()).await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.map_err(|error| broken(&error))?),
                // Half a line is no change: it is told again from the version before.
                None => return Ok(Line::End),
            }
        }
    }

    fn whole_line(&mut self) -> Option<Line> {
        let found = self.buffer[self.looked_at..].iter().position(|byte| *byte == b'\n');
        match found {
            Some(at) => {
                let line = self.buffer.split_to(self.looked_at + at + 1).freeze();
                self.looked_at = 0;
                let bytes = std::mem::take(&mut self.skipped) + line.len() - 1;
                let is_long = bytes > LINE_BYTES_MAX;
                Some(if is_long { Line::TooLong(bytes) } else { Line::Text(line.slice(..line.len() - 1)) })
            }
            None => {
                self.looked_at = self.buffer.len();
                if self.buffer.len() > LINE_BYTES_MAX || self.skipped > 0 {
                    self.skipped += self.buffer.len();
                    self.buffer.clear();
                    self.looked_at = 0;
                }
                None
            }
        }
    }
}
