//! The reading side of a lane: one task that reads the streams of its shards into the ring of one worker.

use std::future::Future;
use std::pin::Pin;

use futures::stream::{BoxStream, FuturesUnordered, StreamExt};
use tapio_runtime::bus::{Bus, BusError, ConnectionState, Echo, News, OrderedConfig, OrderedConsumer};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::ring::Sender;
use tapio_runtime::supervise::WorkerResult;
use tapio_schemas::UnixNanos;
use tapio_schemas::names::events_subject;
use tokio::sync::mpsc;
use tokio_stream::StreamMap;

use super::readings::{QUIET, Readings};
use super::worker::Work;
use crate::low_water::{LowWater, start_at};

/// Messages asked for at a time, per shard: with 64 KiB each, a replica with all shards holds at most 64 MiB unread.
const READ_BATCH: usize = 16;

/// What the control side tells a lane.
pub enum Command {
    /// A shard is owned from now on.
    Own {
        /// Shard.
        shard: u16,
        /// Epoch of its lease.
        epoch: u64,
        /// Where the owner before says that reading has to begin.
        from: Option<LowWater>,
    },
    /// The shard goes to another owner: say the rest, then answer.
    Release(u16),
    /// The shard is another's already: say nothing more.
    Lost(u16),
}

type Feed = BoxStream<'static, Result<News, BusError>>;
type Opening = Pin<Box<dyn Future<Output = (u16, u64, Result<OrderedConsumer, BusError>)> + Send>>;

/// Reads for one worker.
pub struct Intake {
    bus: Bus,
    clock: SharedClock,
    cluster: String,
    /// How far back an owner without a predecessor reads.
    replay_max_ns: u64,
    ring: Sender<Work>,
    commands: mpsc::Receiver<Command>,
    feeds: StreamMap<u16, Feed>,
    opening: FuturesUnordered<Opening>,
    readings: Readings,
}

impl Intake {
    /// A lane without shards.
    pub fn new(
        bus: Bus,
        clock: SharedClock,
        cluster: String,
        replay_max_ns: u64,
        ring: Sender<Work>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            bus,
            clock,
            cluster,
            replay_max_ns,
            ring,
            commands,
            feeds: StreamMap::new(),
            opening: FuturesUnordered::new(),
            readings: Readings::new(),
        }
    }

    /// Reads until the control side is gone. The ring closes with the end.
    ///
    /// # Errors
    /// When the bus refuses a consumer for good, or the worker is gone.
    pub async fn run(mut self) -> WorkerResult {
        let mut quiet = tokio::time::interval(QUIET);
        quiet.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut echo = self.bus.echo().await?;
        loop {
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await?,
                    None => return Ok(()),
                },
                Some((shard, epoch, opened)) = self.opening.next(), if !self.opening.is_empty() => {
                    self.opened(shard, epoch, opened)?;
                }
                number = echo.heard() => self.readings.came_back(number, self.clock.monotonic()),
                Some((shard, item)) = self.feeds.next(), if !self.feeds.is_empty() => {
                    self.take(shard, item?).await?;
                }
                // After the feeds: who follows the clock has read what has come.
                () = std::future::ready(()), if self.readings.is_answered() => self.follow_clock().await?,
                _ = quiet.tick() => self.look(&echo),
            }
        }
    }

    async fn obey(&mut self, command: Command) -> WorkerResult {
        match command {
            Command::Own { shard, epoch, from } => {
                self.readings.own(shard, epoch);
                self.feeds.remove(&shard);
                self.give(Work::Own { shard, epoch, from }).await?;
                self.opening.push(self.open(shard, epoch, from));
                Ok(())
            }
            Command::Release(shard) => {
                self.stop_reading(shard);
                self.give(Work::Release(shard)).await
            }
            Command::Lost(shard) => {
                self.stop_reading(shard);
                self.give(Work::Lost(shard)).await
            }
        }
    }

    fn stop_reading(&mut self, shard: u16) {
        self.readings.stop(shard);
        self.feeds.remove(&shard);
    }

    fn open(&self, shard: u16, epoch: u64, from: Option<LowWater>) -> Opening {
        let bus = self.bus.clone();
        let subject = events_subject(&self.cluster, shard);
        let stream = bus.events_stream_of(shard).name;
        let otherwise = UnixNanos(self.clock.now_unix_nanos()).minus(self.replay_max_ns);
        Box::pin(async move {
            let opened = async {
                let start = start_at(&bus, &stream, from, otherwise).await?;
                tracing::debug!(shard, epoch, ?start, "reading a shard");
                let config = OrderedConfig {
                    filters: vec![subject],
                    start,
                    batch: READ_BATCH,
                    ..OrderedConfig::new(stream)
                };
                bus.ordered_consumer(config).await
            };
            (shard, epoch, opened.await)
        })
    }

    fn opened(&mut self, shard: u16, epoch: u64, opened: Result<OrderedConsumer, BusError>) -> WorkerResult {
        let consumer = opened?;
        // Released or lost while it was opened.
        if !self.readings.is_of(shard, epoch) {
            return Ok(());
        }
        let feed = futures::stream::unfold(consumer, |mut consumer| async move {
            let item = consumer.news().await;
            Some((item, consumer))
        });
        self.feeds.insert(shard, feed.boxed());
        Ok(())
    }

    async fn take(&mut self, shard: u16, item: News) -> WorkerResult {
        let message = match item {
            News::Message(message) => message,
            News::Current => {
                self.readings.current(shard);
                return Ok(());
            }
            News::Behind => {
                self.readings.behind(shard);
                return Ok(());
            }
        };
        self.readings.read(shard, message.pending, self.clock.monotonic());
        self.give(Work::Batch { shard, sequence: message.sequence, payload: message.payload }).await
    }

    /// Asks whether the server moves messages. One that stands still has what is to be read, and says nothing of it.
    fn look(&mut self, echo: &Echo) {
        let is_connected = self.bus.state() == ConnectionState::Connected;
        let wall = UnixNanos(self.clock.now_unix_nanos());
        if let Some(number) = self.readings.look(self.clock.monotonic(), wall, is_connected)
            && let Err(why) = echo.call(number)
        {
            // As if it were lost: it is made again later.
            tracing::debug!(%why, "a call into the server is not made");
        }
    }

    /// Shards with nothing left to read follow the clock. What was read before is before this in the ring.
    async fn follow_clock(&mut self) -> WorkerResult {
        match self.readings.caught_up(self.clock.monotonic()) {
            Some((shards, now)) => self.give(Work::CaughtUp { shards, now }).await,
            None => Ok(()),
        }
    }

    /// A full ring is waited for: the stream keeps the rest.
    async fn give(&mut self, work: Work) -> WorkerResult {
        self.ring.send_async(work).await.map_err(|_| "the shard worker stopped".into())
    }
}
