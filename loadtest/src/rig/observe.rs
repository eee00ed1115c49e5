//! Listens to what comes out: first words, signals and findings, with the time of their arrival.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tapio_runtime::bus::{Bus, BusError, OrderedConfig, OrderedConsumer, StartAt, Subscription};
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::names::{STREAM_INSIGHTS, STREAM_SIGNALS, SUBJECTS_NEWS};
use tapio_schemas::wire::SignalBatchView;
use tapio_schemas::{EventId, Finding, FindingId, UnixNanos};
use tokio::task::JoinHandle;

use crate::error::LoadError;
use crate::latency::Latencies;

/// Messages taken at a time, and how long to wait for one.
const READ: usize = 256;
const READ_WAIT: Duration = Duration::from_millis(100);

/// A finding as it stands in the stream.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its newest revision.
    pub last: Finding,
    /// When each cause was named first: (entity, cause) → unix nanoseconds.
    pub named: HashMap<(tapio_schemas::Entity, String), u64>,
    /// How often each revision is in the stream.
    pub revisions: HashMap<u32, u32>,
}

/// Everything that has come out so far.
#[derive(Debug, Default)]
pub struct Output {
    /// Findings by id.
    pub findings: HashMap<FindingId, Seen>,
    /// Event → the first that is heard of it: its first word, or its signal when that comes before. Of events that are news.
    pub to_signal: Latencies,
    /// Event → the signal that stage two decides by.
    pub to_binding_signal: Latencies,
    /// Of the former, how many were first words.
    pub first_words: u64,
    /// Signal messages, and those that do not decode.
    pub sections: u64,
    /// Messages that do not decode.
    pub unreadable: u64,
    /// Event time that each shard has passed.
    pub watermarks: HashMap<u16, UnixNanos>,
    /// News that no signal has named yet: event → its time, and whether a first word has.
    awaited: HashMap<EventId, (UnixNanos, bool)>,
}

impl Output {
    /// Event time that all shards have passed; zero until all have spoken.
    pub fn watermark(&self) -> UnixNanos {
        if self.watermarks.len() < usize::from(tapio_schemas::names::SHARD_COUNT) {
            return UnixNanos(0);
        }
        self.watermarks.values().copied().min().unwrap_or_default()
    }

    /// News that no signal has named.
    pub fn unnamed(&self) -> usize {
        self.awaited.len()
    }

    fn section(&mut self, payload: &[u8], now: u64) {
        self.sections += 1;
        let Ok(view) = SignalBatchView::check(payload) else {
            self.unreadable += 1;
            return;
        };
        let section = view.to_section();
        // Of a partial section more of the same step is to come.
        for mark in section.marks.iter().filter(|_| !section.partial) {
            let known = self.watermarks.entry(mark.shard).or_default();
            *known = mark.at.max(*known);
        }
        for event in section.signals.iter().flat_map(|signal| &signal.evidence) {
            if let Some((at, was_told)) = self.awaited.remove(event) {
                let took = now.saturating_sub(at.0);
                self.to_binding_signal.add(took);
                if !was_told {
                    self.to_signal.add(took);
                }
            }
        }
    }

    fn first_words(&mut self, payload: &[u8], now: u64) {
        let Ok(view) = SignalBatchView::check(payload) else {
            self.unreadable += 1;
            return;
        };
        for event in view.to_section().signals.iter().flat_map(|signal| &signal.evidence) {
            if let Some((at, was_told @ false)) = self.awaited.get_mut(event) {
                *was_told = true;
                self.first_words += 1;
                self.to_signal.add(now.saturating_sub(at.0));
            }
        }
    }

    fn finding(&mut self, payload: &[u8], now: u64) {
        let Ok(finding) = serde_json::from_slice::<Finding>(payload) else {
            self.unreadable += 1;
            return;
        };
        let seen = self.findings.entry(finding.id).or_insert_with(|| Seen {
            last: finding.clone(),
            named: HashMap::new(),
            revisions: HashMap::new(),
        });
        *seen.revisions.entry(finding.revision).or_default() += 1;
        if let Some(root) = &finding.root_cause {
            seen.named.entry((root.entity.clone(), root.cause.to_string())).or_insert(now);
        }
        if finding.revision >= seen.last.revision {
            seen.last = finding;
        }
    }
}

/// The running listeners.
pub struct Observer {
    output: Arc<Mutex<Output>>,
    shutdown: Shutdown,
    tasks: Vec<JoinHandle<Result<(), BusError>>>,
}

impl Observer {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the streams are not there.
    pub async fn start(bus: &Bus) -> Result<Self, LoadError> {
        let output = Arc::new(Mutex::new(Output::default()));
        let shutdown = Shutdown::new();
        let mut tasks = Vec::new();
        for stream in [STREAM_SIGNALS, STREAM_INSIGHTS] {
            let config = OrderedConfig { start: StartAt::Beginning, ..OrderedConfig::new(stream) };
            let consumer = bus.ordered_consumer(config).await?;
            let (output, shutdown) = (Arc::clone(&output), shutdown.clone());
            tasks.push(tokio::spawn(listen(consumer, stream, output, shutdown)));
        }
        let news = bus.subscribe(SUBJECTS_NEWS).await?;
        tasks.push(tokio::spawn(hear(news, Arc::clone(&output), shutdown.clone())));
        Ok(Self { output, shutdown, tasks })
    }

    /// These events are news: their way to a signal is measured.
    pub fn expect(&self, news: impl IntoIterator<Item = (EventId, UnixNanos)>) {
        self.output().awaited.extend(news.into_iter().map(|(event, at)| (event, (at, false))));
    }

    /// What has come so far. Not to be held over an await.
    pub fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the listeners.
    ///
    /// # Errors
    /// When one of them had ended before, for the bus was closed.
    pub async fn stop(&mut self) -> Result<(), LoadError> {
        self.shutdown.trigger();
        for task in self.tasks.drain(..) {
            task.await.map_err(|error| LoadError::Generator(error.to_string()))??;
        }
        Ok(())
    }
}

async fn hear(
    mut news: Subscription,
    output: Arc<Mutex<Output>>,
    shutdown: Shutdown,
) -> Result<(), BusError> {
    loop {
        let message = tokio::select! {
            message = news.next() => message.ok_or(BusError::Closed)?,
            () = shutdown.wait() => return Ok(()),
        };
        let now = unix_nanos();
        output.lock().unwrap_or_else(PoisonError::into_inner).first_words(&message.payload, now);
    }
}

async fn listen(
    mut consumer: OrderedConsumer,
    stream: &'static str,
    output: Arc<Mutex<Output>>,
    shutdown: Shutdown,
) -> Result<(), BusError> {
    while !shutdown.is_triggered() {
        let messages = consumer.next_batch(READ, READ_WAIT).await?;
        let now = unix_nanos();
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        for message in messages {
            match stream {
                STREAM_SIGNALS => output.section(&message.payload, now),
                _ => output.finding(&message.payload, now),
            }
        }
    }
    Ok(())
}

/// The wall clock.
pub fn unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
