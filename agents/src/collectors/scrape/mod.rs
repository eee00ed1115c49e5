//! Metrics of others, asked for in the text form of Prometheus and OpenMetrics.
//!
//! Of the parts of a cluster a few numbers are told, each of the time since the scrape before:
//!
//! | role | gauges | about |
//! |---|---|---|
//! | `api_server` | `k8s.api_server.request.p99` s, `k8s.api_server.{refused,failed}.share` | Component kube-apiserver |
//! | | `k8s.etcd.request.p99` s, as the API server sees it | Component etcd |
//! | `scheduler`, `controller_manager` | `k8s.scheduler.pending`, `k8s.workqueue.depth` | Component |
//! | `etcd` | `etcd.{wal_fsync,backend_commit}.p99` s, `etcd.db.share`, `etcd.leader.changes` in 15 min | Component etcd |
//! | `core_dns` | `dns.failed.share`, `dns.request.p99` s, `dns.broken` | Service kube-system/kube-dns |
//! | `kubelet` | `kubelet.pleg.relist.p99` s | the machine |
//! | `node` | `system.network.conntrack.share`, `system.clock.offset` s | the machine |
//! | all but `other` | `k8s.component.failing`: 1 when it does not answer or a check fails (`which`) | as above |
//!
//! A target that cannot be used (a wrong token, no metrics), or has not answered yet, says nothing of how it fares: the collector
//! is degraded then. What
//! `keep` names is passed on as it is. Which numbers are bad is the correlator's to say.

mod config;
pub mod exposition;
mod roles;
mod tally;
mod target;
mod tell;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;

use self::roles::{LEADERS_WITHIN, Reading};
use self::tally::Tally;
use self::target::{Failure, Limits, Target};
use self::tell::Entities;
use super::sampling::waiting;
use super::{CollectorState, CollectorStates};
use crate::sink::EventSink;

pub use config::{Role, ScrapeConfig, TargetConfig};
pub use target::Home;

/// Scrapes whose leader changes are remembered.
const LEADERS_MAX: usize = 1024;

/// What the collector needs.
#[derive(Clone)]
pub struct Parts {
    /// Configuration.
    pub config: ScrapeConfig,
    /// Where the API server is that has no URL.
    pub home: Home,
    /// Name of the cluster.
    pub cluster: String,
    /// Name of this machine.
    pub node: String,
    /// Clock of scrapes.
    pub clock: SharedClock,
    /// Where events go.
    pub sink: EventSink,
    /// Where the state is told.
    pub states: CollectorStates,
    /// Where it is counted.
    pub metrics: Metrics,
}

#[derive(Clone)]
struct Counts {
    scrapes: Family<[(&'static str, &'static str); 1], Counter>,
    broken: Counter,
    left_out: Counter,
}

/// A target, and what it said before.
struct Follower {
    target: Target,
    entities: Entities,
    keep: Arc<[String]>,
    series_max: usize,
    before: Option<Tally>,
    /// It was there once. Whoever never was may well be out of reach from here: by default a scheduler hears its own machine alone.
    has_answered: bool,
    /// Times at which the leader had changed, and how often.
    leaders: VecDeque<(UnixNanos, f64)>,
    /// Checks that have failed and are told as well once they do not.
    checks: BTreeSet<String>,
}

/// Asks all targets again and again until it is told to stop.
///
/// # Errors
/// When the node agent takes no more events.
pub async fn run(parts: Parts, context: WorkerContext) -> WorkerResult {
    let counts = Counts {
        scrapes: parts.metrics.shared("scrape_scrapes", "Scrapes of targets, by outcome"),
        broken: parts.metrics.shared("scrape_broken_lines", "Lines of targets that are no samples"),
        left_out: parts.metrics.shared("scrape_series_left_out", "Samples beyond scrape.series_max"),
    };
    let (mut followers, unusable) = followers(&parts).await;
    let interval = parts.config.interval.get();
    let mut due = parts.clock.monotonic();
    loop {
        let asked = followers.iter_mut().map(|follower| follower.scrape(&parts.clock, &counts));
        let asked = waiting(&context, futures::future::join_all(asked)).await;
        let mut wrong = unusable.clone();
        let mut events = Vec::new();
        for (told, reason) in asked {
            events.extend(told);
            wrong.extend(reason);
        }
        parts.states.set(
            "scrape",
            match wrong.first() {
                None => CollectorState::Running,
                Some(_) => CollectorState::Degraded(wrong.join("; ")),
            },
        );
        tokio::select! {
            sent = parts.sink.send(events) => sent?,
            () = context.shutdown.wait() => return Ok(()),
        }
        due = (due + interval).max(parts.clock.monotonic());
        let wait = due.saturating_sub(parts.clock.monotonic());
        tokio::select! {
            () = context.shutdown.wait() => return Ok(()),
            () = waiting(&context, parts.clock.sleep(wait)) => {}
        }
    }
}

/// The targets that can be asked, and why others cannot.
async fn followers(parts: &Parts) -> (Vec<Follower>, Vec<String>) {
    let (mut all, mut wrong) = (Vec::new(), Vec::new());
    let config = &parts.config;
    for of in &config.targets {
        let limits = Limits { timeout: config.timeout.get(), body_max: config.body_max.0 };
        let target = Target::new(of, limits, &parts.home, parts.clock.clone()).await;
        let follower = target.and_then(|target| {
            let entities = Entities::new(&parts.cluster, &parts.node, of, &target.name)?;
            Ok(Follower {
                target,
                entities,
                keep: of.keep.clone().into(),
                series_max: config.series_max,
                before: None,
                has_answered: false,
                leaders: VecDeque::new(),
                checks: BTreeSet::new(),
            })
        });
        match follower {
            Ok(follower) => all.push(follower),
            Err(reason) => wrong.push(reason),
        }
    }
    (all, wrong)
}

impl Follower {
    /// One scrape: what it tells, and why it could not.
    async fn scrape(&mut self, clock: &SharedClock, counts: &Counts) -> (Vec<UnifiedEvent>, Option<String>) {
        let at = UnixNanos(clock.now_unix_nanos());
        let (mut tally, mut events, mut left_out) = (Tally::default(), Vec::new(), 0_u64);
        let role = self.target.role;
        let (keep, entities, max) = (Arc::clone(&self.keep), &self.entities, self.series_max);
        let mut each = |sample: &exposition::Sample<'_>| {
            if let Some(slot) = role.slot(sample) {
                tally.take(slot, sample);
            }
            if keep.iter().any(|pattern| matches(pattern, sample.name)) {
                if events.len() < max {
                    events.extend(entities.kept(sample, at));
                } else {
                    left_out += 1;
                }
            }
        };
        let read = self.target.metrics(&mut each).await;
        counts.left_out.inc_by(left_out);
        let outcome = match &read {
            Ok(_) => "read",
            Err(Failure::Away(_)) => "away",
            Err(Failure::Unusable(_)) => "unusable",
        };
        counts.scrapes.get_or_create(&[("outcome", outcome)]).inc();
        let (mut readings, wrong) = match read {
            Ok(read) => {
                counts.broken.inc_by(read.broken);
                self.has_answered = true;
                (self.said(tally, at), None)
            }
            Err(failure) => {
                // Half of a scrape is none.
                events.clear();
                self.before = None;
                let is_away = self.has_answered && matches!(failure, Failure::Away(_));
                let reason = failure.to_string();
                (if is_away { vec![self.failing("answers", 1.0)] } else { Vec::new() }, Some(reason))
            }
        };
        if role == Role::ApiServer && wrong.is_none() {
            readings.extend(self.checked().await);
        }
        if role == Role::Other {
            readings.clear();
        }
        events.extend(readings.iter().map(|reading| self.entities.reading(reading, at)));
        (events, wrong)
    }

    fn said(&mut self, tally: Tally, at: UnixNanos) -> Vec<Reading> {
        if let Some(changes) = tally.sum("changes") {
            self.leaders.push_back((at, changes));
        }
        let within = u64::try_from(LEADERS_WITHIN.as_nanos()).unwrap_or(u64::MAX);
        // The last one before that time is what is counted from.
        while self.leaders.len() > LEADERS_MAX
            || self.leaders.get(1).is_some_and(|(then, _)| at.since(*then) > within)
        {
            self.leaders.pop_front();
        }
        let changes = self.leaders.front().zip(self.leaders.back());
        let changes = changes.map_or(0.0, |((_, first), (_, last))| (last - first).max(0.0)) as u32;
        let mut readings = self.target.role.readings(&tally, self.before.as_ref(), changes);
        readings.push(self.failing("answers", 0.0));
        self.before = Some(tally);
        readings
    }

    /// What the checks say: one that has failed once is told from then on.
    async fn checked(&mut self) -> Vec<Reading> {
        let Ok(failed) = self.target.failed_checks().await else { return Vec::new() };
        self.checks.extend(failed.iter().cloned());
        self.checks
            .iter()
            .map(|check| self.failing(check, f64::from(u8::from(failed.contains(check)))))
            .collect()
    }

    fn failing(&self, check: &str, value: f64) -> Reading {
        let about = self.target.role.about();
        Reading { metric: "k8s.component.failing", unit: "1", about, value, which: check.to_owned() }
    }
}

/// `a_*` stands for every name that begins with `a_`.
fn matches(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}
