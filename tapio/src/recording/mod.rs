//! Recordings: JSON lines in time order, replayed in event time through the very pipeline.

mod line;
mod merge;

use std::io::BufRead;
use std::sync::Arc;

use anyhow::Context;
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::engine::Engine;
use tapio_correlator::model::Model;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{Finding, ProducerId, UnifiedEvent, UnixNanos};

use line::Converter;
use merge::Merged;

/// Events of a shard before a batch is made, as the node agent does it.
const BATCH_EVENTS: usize = 1024;
/// Event time between two looks at the findings.
const STEP_NS: u64 = 100_000_000;

/// How a recording is replayed.
#[derive(Debug, Clone, Default)]
pub struct ReplaySettings {
    /// Cluster the recording is taken for.
    pub cluster: String,
    /// The correlator's settings.
    pub correlator: CorrelatorConfig,
}

/// A replay: decoder, node-side batching and the in-process engine.
pub struct Replay {
    converter: Converter,
    batches: Vec<EventBatch>,
    engine: Engine,
    seen: UnixNanos,
    advanced: UnixNanos,
}

impl Replay {
    /// A replay from nothing.
    pub fn new(settings: &ReplaySettings) -> anyhow::Result<Self> {
        let model = Arc::new(Model::builtin().context("the built-in patterns do not load")?);
        let batches = (0..SHARD_COUNT).map(|shard| EventBatch::new(ProducerId(1), 0, shard)).collect();
        Ok(Self {
            converter: Converter::new(&settings.cluster),
            batches,
            engine: Engine::new(&settings.cluster, settings.correlator.clone(), model),
            seen: UnixNanos(0),
            advanced: UnixNanos(0),
        })
    }

    /// Reads all lines of all files, merged in time order, and hands out each finding revision.
    pub fn run(
        &mut self,
        files: Vec<Box<dyn BufRead>>,
        mut found: impl FnMut(Finding) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for line in Merged::new(files)? {
            let line = line?;
            // Before it is taken: of the lines of one moment none may be late because another one stands first.
            if line.at > self.seen && self.seen.since(self.advanced) >= STEP_NS {
                self.step(&mut found)?;
            }
            self.seen = self.seen.max(line.at);
            for event in self.converter.convert(line)? {
                self.take(event)?;
            }
        }
        self.step(&mut found)?;
        self.engine.settle().into_iter().try_for_each(&mut found)
    }

    /// Takes events that are in the order of their times, as of `now`, and hands out each finding revision.
    pub fn run_events(
        &mut self,
        events: Vec<UnifiedEvent>,
        now: UnixNanos,
        mut found: impl FnMut(Finding) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for event in events {
            // Before it is taken: a batch must not be ahead of what is due before it.
            if self.seen.max(event.timestamp).since(self.advanced) >= STEP_NS {
                self.step(&mut found)?;
            }
            self.seen = self.seen.max(event.timestamp);
            self.take(event)?;
        }
        self.seen = self.seen.max(now);
        self.step(&mut found)?;
        self.engine.settle().into_iter().try_for_each(&mut found)
    }

    /// Newest time of what was taken.
    pub fn seen(&self) -> UnixNanos {
        self.seen
    }

    fn take(&mut self, event: UnifiedEvent) -> anyhow::Result<()> {
        let shard = usize::from(event.key().shard());
        self.batches[shard].push(event);
        if self.batches[shard].len() >= BATCH_EVENTS {
            self.flush(shard)?;
        }
        Ok(())
    }

    fn flush(&mut self, shard: usize) -> anyhow::Result<()> {
        if !self.batches[shard].is_empty() {
            let bytes = self.batches[shard].finish(UnixNanos(0)).context("cannot encode a batch")?;
            self.engine.push_batch(&bytes).context("the engine refused a batch")?;
        }
        Ok(())
    }

    fn step(&mut self, found: &mut impl FnMut(Finding) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for shard in 0..self.batches.len() {
            self.flush(shard)?;
        }
        self.advanced = self.seen;
        self.engine.advance_to(self.seen).into_iter().try_for_each(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// What one second brought, written down when it was over.
    fn line(signal: &str, second: u64, record: &serde_json::Value) -> String {
        let (resource, scope, records) = match signal {
            "logs" => ("resourceLogs", "scopeLogs", "logRecords"),
            _ => ("resourceSpans", "scopeSpans", "spans"),
        };
        let request = serde_json::json!({resource: [{scope: [{records: [record]}]}]});
        let at = ((second + 1) * SECOND).to_string();
        serde_json::json!({"at_unix_nano": at, "signal": signal, "request": request}).to_string() + "\n"
    }

    fn second(number: u64) -> [String; 2] {
        let (at, end) = (number * SECOND + SECOND / 10, number * SECOND + SECOND / 5);
        let (trace, span) = (format!("{number:032x}"), format!("{number:016x}"));
        let times = (at.to_string(), end.to_string());
        let log = serde_json::json!({"timeUnixNano": times.0, "traceId": trace, "spanId": span});
        let span = serde_json::json!({"startTimeUnixNano": times.0, "endTimeUnixNano": times.1, "kind": 2,
            "traceId": trace, "spanId": span, "name": "GET"});
        [line("logs", number, &log), line("traces", number, &span)]
    }

    #[test]
    fn of_the_lines_of_one_moment_none_is_late_whichever_stands_first() {
        for turned in [false, true] {
            let mut text = String::new();
            for number in 1_700_000_000..1_700_000_020 {
                let mut lines = second(number);
                if turned {
                    lines.reverse();
                }
                text += &lines.concat();
            }
            let settings = ReplaySettings { cluster: "c".to_owned(), ..ReplaySettings::default() };
            let mut replay = Replay::new(&settings).unwrap();
            replay.run(vec![Box::new(std::io::Cursor::new(text))], |_| Ok(())).unwrap();
            let counters = replay.engine.take_counters();
            let sum =
                |of: fn(&tapio_correlator::shards::Counters) -> u64| counters.iter().map(of).sum::<u64>();
            assert_eq!((sum(|c| c.events), sum(|c| c.late)), (40, 0), "turned around: {turned}");
        }
    }
}
