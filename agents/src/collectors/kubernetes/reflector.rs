//! One kind, as the API server tells it: list, watch, resume, list again when the server has forgotten the version.
//!
//! The list comes as a stream where the server has that, else in pages; bookmarks keep the version fresh, so that a watch that
//! ends is resumed and not begun anew. Each object becomes a summary while it is read.

use std::sync::Arc;
use std::time::Duration;

use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use smol_str::{SmolStr, format_smolstr};
use tapio_runtime::backoff::Backoff;
use tokio::sync::{Semaphore, mpsc};

use super::convert::EventSummary;
use super::json::str_at;
use super::pruned::Pruned;
use super::requests::{Fault, Line, Lines, Server};
use super::snapshot::api::escaped;
use super::snapshot::decode::{self, Fallback};
use super::summary::{NotAnObject, Summary};
use super::watched::{self, Watched};

/// Objects of a page.
const PAGE_OBJECTS: usize = 500;
/// How often a list begins anew because the server has forgotten its version; then it is asked for at once.
const RESTARTS_MAX: u32 = 2;
/// The server ends a watch after this time, which also says that it is there.
const WATCH_TIME: Duration = Duration::from_secs(60);
/// Silence beyond that: the connection is dead.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(65);
/// A watch that ends sooner and without a word is an error, so that nobody is asked without a pause.
const WATCH_TIME_MIN: Duration = Duration::from_secs(1);
/// Failures in a row after which a watch is begun anew with a list: what it stumbles over may be in its way for ever.
const RESUMES_MAX: u32 = 5;
/// Streams of lists in a row that end before the list does; then lists are asked for in pages.
const CUT_SHORT_MAX: u32 = 2;
/// A kind that the server does not have is asked for again after this time.
const ABSENT_RETRY: Duration = Duration::from_secs(300);

/// What a watch says.
#[derive(Debug)]
pub enum Change {
    /// A full list of this kind begins.
    ListBegins(SmolStr),
    /// An object of that list.
    Listed(Said),
    /// The list is complete.
    ListEnds,
    /// Added or modified.
    Applied(Said),
    /// Deleted.
    Deleted(Said),
    /// Nothing has changed, and the server is there.
    Alive,
    /// It cannot go on for now, and will try again.
    Failed(String),
    /// A permission is missing; it will try again.
    Forbidden(String),
    /// The server does not have this kind.
    Absent,
}

/// What an object says.
#[derive(Debug)]
pub enum Said {
    /// An object.
    Object(Box<Summary>),
    /// An Event.
    Event(Box<EventSummary>),
    /// Neither.
    Malformed(NotAnObject),
}

impl Said {
    fn of(object: &Value) -> Self {
        let said = if str_at(object, "/kind") == "Event" {
            EventSummary::of(object).map(|event| Self::Event(Box::new(event)))
        } else {
            Summary::of(object).map(|summary| Self::Object(Box::new(summary)))
        };
        said.unwrap_or_else(Self::Malformed)
    }
}

/// What all watches share.
#[derive(Clone)]
pub struct Shared {
    /// Who is asked.
    pub server: Server,
    /// Between errors.
    pub backoff: Backoff,
    /// Selects pods of one node; empty for all.
    pub fields: SmolStr,
    /// Lists at the same time.
    pub lists: Arc<Semaphore>,
    /// Where changes go, by place of the kind in the list of all.
    pub changes: mpsc::Sender<(usize, Change)>,
}

/// Watches one kind for ever.
pub struct Reflector {
    place: usize,
    kind: Watched,
    shared: Shared,
    /// Which of its versions is used.
    version_at: usize,
    /// The server may have lists as streams.
    streams: bool,
    /// Streams of lists in a row that were not read to their ends.
    cut_short: u32,
    /// Faults since it last worked.
    errors: u32,
}

/// A watch is over: nobody listens, or something failed.
enum End {
    Closed,
    Fault(Fault),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Reflector {
    /// Watches `kind`, which is at `place` in the list of all.
    pub fn new(place: usize, kind: Watched, shared: Shared) -> Self {
        Self { place, kind, shared, version_at: 0, streams: true, cut_short: 0, errors: 0 }
    }

    /// Ends when nobody listens any more.
    pub async fn run(mut self) {
        // The version up to which all is known.
        let mut known: Option<String> = None;
        loop {
            let step = match known.clone() {
                None => self.begin(&mut known).await,
                Some(_) => self.watch(&mut known).await,
            };
            match step {
                Ok(()) => {}
                Err(End::Closed) => return,
                Err(End::Fault(fault)) => {
                    if self.stumble(fault, &mut known).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Says what is wrong, waits, and decides how it goes on.
    async fn stumble(&mut self, fault: Fault, known: &mut Option<String>) -> Result<(), End> {
        let has_other = self.version_at + 1 < self.kind.versions.len();
        let mut delay = self.shared.backoff.delay(self.errors);
        self.errors = self.errors.saturating_add(1);
        match fault {
            Fault::NotServed | Fault::Forbidden(_) if has_other => {
                (self.version_at, self.errors) = (self.version_at + 1, 0);
                *known = None;
                return Ok(());
            }
            Fault::NotServed => {
                self.say(Change::Absent).await?;
                delay = delay.max(ABSENT_RETRY);
                (self.version_at, *known) = (0, None);
            }
            Fault::Forbidden(said) => {
                self.say(Change::Forbidden(said)).await?;
                (self.version_at, *known) = (0, None);
            }
            // Routine, as long as a list helps.
            Fault::Expired if self.errors <= 1 => {
                *known = None;
                return Ok(());
            }
            Fault::Expired => {
                *known = None;
                self.say(Change::Failed("the server forgets versions before they can be watched".to_owned()))
                    .await?;
            }
            Fault::Refused(reason) if self.streams && known.is_none() => {
                tracing::debug!(kind = %self.kind.kind, reason, "the server has no streaming lists");
                (self.streams, self.errors) = (false, 0);
                return Ok(());
            }
            Fault::Refused(reason) => {
                *known = None;
                self.say(Change::Failed(reason)).await?;
            }
            Fault::Passing(reason, after) => {
                delay = delay.max(after);
                if self.errors.is_multiple_of(RESUMES_MAX) {
                    *known = None;
                }
                self.say(Change::Failed(reason)).await?;
            }
        }
        self.shared.server.clock.sleep(delay.max(Duration::from_millis(1))).await;
        Ok(())
    }

    async fn begin(&mut self, known: &mut Option<String>) -> Result<(), End> {
        if self.kind.is_custom && !self.version().contains('/') {
            self.learn().await?;
        }
        let permit = Arc::clone(&self.shared.lists).acquire_owned().await.map_err(|_| End::Closed)?;
        self.say(Change::ListBegins(self.kind.kind.clone())).await?;
        let mut stream = None;
        let version = if self.streams {
            let (version, lines) = self.streamed_list().await?;
            stream = Some(lines);
            version
        } else {
            self.paged_list().await?
        };
        self.say(Change::ListEnds).await?;
        drop(permit);
        *known = Some(version);
        match stream {
            Some(lines) => self.follow(lines, known).await,
            None => Ok(()),
        }
    }

    /// Learns version and kind of a custom resource.
    async fn learn(&mut self) -> Result<(), End> {
        let group = self.kind.group().to_owned();
        let server = &self.shared.server;
        let about = server.document(&format!("/apis/{group}")).await?;
        let version = str_at(&about, "/preferredVersion/groupVersion");
        if version.is_empty() {
            return Err(Fault::NotServed.into());
        }
        let resources = server.document(&format!("/apis/{version}")).await?;
        let resources = resources["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
        let own = resources.iter().find(|resource| str_at(resource, "/name") == self.kind.plural);
        let kind =
            own.map(|own| str_at(own, "/kind")).filter(|kind| !kind.is_empty()).ok_or(Fault::NotServed)?;
        // Another group may have a kind of the same name.
        self.kind.kind =
            if watched::is_known(kind) { format_smolstr!("{kind}.{group}") } else { SmolStr::new(kind) };
        self.kind.versions = vec![SmolStr::new(version)];
        Ok(())
    }

    /// The list as a stream, which then goes on as a watch.
    async fn streamed_list(&mut self) -> Result<(String, Lines), End> {
        let query = "resourceVersionMatch=NotOlderThan&sendInitialEvents=true";
        let mut lines = self.shared.server.lines(&self.watch_uri(query)).await?;
        let read = self.listed(&mut lines).await;
        self.cut_short = match &read {
            Err(End::Fault(Fault::Passing(..))) => self.cut_short + 1,
            _ => 0,
        };
        if self.cut_short >= CUT_SHORT_MAX {
            tracing::debug!(kind = %self.kind.kind, "streams of its lists do not come to their ends");
            self.streams = false;
        }
        Ok((read?, lines))
    }

    /// A list from its stream; returns its version.
    async fn listed(&self, lines: &mut Lines) -> Result<String, End> {
        loop {
            match lines.next(WATCH_SILENCE_MAX).await? {
                Line::End => return Err(Fault::passing("the list broke off").into()),
                Line::TooLong(bytes) => return Err(too_long(bytes).into()),
                Line::Text(text) => match self.read(&text)? {
                    Message::Changed(said, _) => self.say(Change::Listed(said)).await?,
                    // It was in the list, and is deleted before the list is at its end.
                    Message::Deleted(said, _) => self.say(Change::Deleted(said)).await?,
                    Message::Bookmark { version, ends_list: true } => return Ok(version),
                    Message::Bookmark { .. } => self.say(Change::Alive).await?,
                },
            }
        }
    }

    /// The list in pages; returns its version.
    async fn paged_list(&mut self) -> Result<String, End> {
        let (mut token, mut restarts) = (String::new(), 0);
        loop {
            // Pages that expire again and again come too slowly: then all is asked for at once.
            let limit = if restarts == RESTARTS_MAX { 0 } else { PAGE_OBJECTS };
            let mut uri = format!("{}?limit={limit}{}", self.kind.path(self.version()), self.selected());
            if !token.is_empty() {
                uri.push_str("&continue=");
                uri.push_str(&escaped(&token));
            }
            let page = match self.shared.server.page(&uri).await {
                Err(Fault::Expired) if restarts < RESTARTS_MAX => {
                    (token, restarts) = (String::new(), restarts + 1);
                    self.say(Change::ListBegins(self.kind.kind.clone())).await?;
                    continue;
                }
                page => page?,
            };
            let mut objects = Vec::new();
            let fallback = Fallback { kind: &self.kind.kind, api_version: self.version() };
            let (of_kind, is_custom) = (&self.kind.kind, self.kind.is_custom);
            let head = decode::slice(&page, fallback, &mut |mut object| {
                if is_custom {
                    object["kind"] = Value::from(of_kind.as_str());
                }
                objects.push(Said::of(&object));
            });
            let head = head.map_err(|error| Fault::passing(format!("the answer is no list: {error}")))?;
            for said in objects {
                self.say(Change::Listed(said)).await?;
            }
            match (head.continue_token, head.resource_version) {
                (next, _) if !next.is_empty() => token = next,
                (_, version) if !version.is_empty() => return Ok(version),
                _ => return Err(Fault::passing("the list has no resourceVersion").into()),
            }
        }
    }

    async fn watch(&mut self, known: &mut Option<String>) -> Result<(), End> {
        let query = format!("resourceVersion={}", escaped(known.as_deref().unwrap_or_default()));
        let lines = self.shared.server.lines(&self.watch_uri(&query)).await?;
        self.follow(lines, known).await
    }

    async fn follow(&mut self, mut lines: Lines, known: &mut Option<String>) -> Result<(), End> {
        let began = self.shared.server.clock.monotonic();
        self.say(Change::Alive).await?;
        let mut spoke = false;
        loop {
            let text = match lines.next(WATCH_SILENCE_MAX).await? {
                Line::Text(text) => text,
                Line::TooLong(bytes) => return Err(too_long(bytes).into()),
                Line::End => {
                    let lasted = self.shared.server.clock.monotonic().saturating_sub(began);
                    if !spoke && lasted < WATCH_TIME_MIN {
                        return Err(Fault::passing("the watch ended at once").into());
                    }
                    self.errors = 0;
                    return Ok(());
                }
            };
            let (change, version) = match self.read(&text)? {
                Message::Changed(said, version) => (Change::Applied(said), version),
                Message::Deleted(said, version) => (Change::Deleted(said), version),
                Message::Bookmark { version, .. } => (Change::Alive, version),
            };
            self.say(change).await?;
            if !version.is_empty() {
                *known = Some(version);
            }
            (spoke, self.errors) = (true, 0);
        }
    }

    fn read(&self, line: &[u8]) -> Result<Message, Fault> {
        let garbage = |error: &dyn std::fmt::Display| {
            Fault::passing(format!("the watch says what is no change: {error}"))
        };
        let (word, mut object) = WatchLine::read(line).map_err(|error| garbage(&error))?;
        let version = str_at(&object, "/metadata/resourceVersion").to_owned();
        if word == "ERROR" {
            let code = object["code"].as_u64().unwrap_or_default();
            return Err(Fault::of_status(code, str_at(&object, "/message")));
        }
        if word == "BOOKMARK" {
            let ends_list = !object["metadata"]["annotations"]["k8s.io/initial-events-end"].is_null();
            return Ok(Message::Bookmark { version, ends_list });
        }
        if object.is_object() && (self.kind.is_custom || object["kind"].is_null()) {
            object["kind"] = Value::from(self.kind.kind.as_str());
        }
        let said = Said::of(&object);
        match word.as_str() {
            "ADDED" | "MODIFIED" => Ok(Message::Changed(said, version)),
            "DELETED" => Ok(Message::Deleted(said, version)),
            other => Err(garbage(&format!("type {other:?}"))),
        }
    }

    fn version(&self) -> &str {
        self.kind.versions.get(self.version_at).map(SmolStr::as_str).unwrap_or_default()
    }

    fn watch_uri(&self, query: &str) -> String {
        let (path, selected, seconds) =
            (self.kind.path(self.version()), self.selected(), WATCH_TIME.as_secs());
        format!("{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={seconds}&{query}{selected}")
    }

    fn selected(&self) -> String {
        match self.shared.fields.as_str() {
            "" => String::new(),
            fields => format!("&fieldSelector={}", escaped(fields)),
        }
    }

    async fn say(&self, change: Change) -> Result<(), End> {
        self.shared.changes.send((self.place, change)).await.map_err(|_| End::Closed)
    }
}

fn too_long(bytes: usize) -> Fault {
    Fault::passing(format!("the watch tells an object of {bytes} bytes, which is too long to be read"))
}

/// What a line of a watch says, with the version after it.
enum Message {
    Changed(Said, String),
    Deleted(Said, String),
    Bookmark { version: String, ends_list: bool },
}

/// `{"type":"ADDED","object":{…}}`: the word and the pruned object.
struct WatchLine;

impl WatchLine {
    fn read(line: &[u8]) -> serde_json::Result<(String, Value)> {
        let mut from = serde_json::Deserializer::from_slice(line);
        let read = from.deserialize_map(Self)?;
        from.end()?;
        Ok(read)
    }
}

impl<'de> Visitor<'de> for WatchLine {
    type Value = (String, Value);

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a change of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let (mut word, mut object) = (None, None);
        while let Some(key) = fields.next_key::<String>()? {
            match key.as_str() {
                "type" => word = Some(fields.next_value()?),
                "object" => object = Some(fields.next_value_seed(Pruned::OBJECT)?),
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        let word = word.ok_or_else(|| A::Error::missing_field("type"))?;
        Ok((word, object.ok_or_else(|| A::Error::missing_field("object"))?))
    }
}
