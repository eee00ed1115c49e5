//! `tapio status`: what each part has done with the events, and whether all are accounted for.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tapio_runtime::bus::{Bus, BusConfig, Kv, KvEvent};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::UnixNanos;
use tapio_schemas::names::KEY_STATUS_PREFIX;
use tapio_schemas::status::{
    AgentStatus, CorrelatorStatus, EVERY, SILENT_AFTER, StorageStatus, WatchState, WatchStatus,
};

use crate::balance::{Account, Balance, Words, judge};
use crate::cli::{Output, StatusArgs};
use crate::commands::record::nats_url;
use crate::exit::{CANNOT_TELL, FINDINGS};

/// Longest wait for each side to speak again.
const WORDS_WAIT_MAX: Duration = Duration::from_secs(3 * EVERY.as_secs());
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Lines of agents on one screen; those with losses come first.
const AGENTS_SHOWN_MAX: usize = 20;

/// What all parts say.
#[derive(Debug, Default, Clone)]
struct Said {
    agents: Vec<AgentStatus>,
    correlators: Vec<CorrelatorStatus>,
    storage: Vec<StorageStatus>,
}

/// The document of `--output json`.
#[derive(Debug, Serialize)]
struct Report {
    /// Exact, and what is not accounted for.
    exact: bool,
    /// Accounts of producers.
    #[serde(flatten)]
    balance: Balance,
    correlators: Vec<Replica>,
    storage: Vec<StorageStatus>,
    /// Parts that have not spoken lately: role and name.
    silent: Vec<(&'static str, String)>,
}

/// A correlator replica in the report.
#[derive(Debug, Serialize)]
struct Replica {
    replica: String,
    shards: usize,
    lag_ms: u64,
    circuit: String,
    findings: u64,
    batches_rejected: u64,
    /// Batches put aside because one of their shard takes too long.
    batches_deferred: u64,
    /// For how long some have been waiting.
    deferred_seconds: u64,
    producers_left_out: u64,
}

/// Asks NATS, adds up, prints.
pub async fn run(args: StatusArgs) -> anyhow::Result<i32> {
    let url = nats_url(args.nats_url.as_deref(), &args.client)?;
    let bus = Bus::connect(&BusConfig { urls: vec![url], ..BusConfig::default() }, &Metrics::new()).await?;
    let bucket = bus.kv().await.context("no Tapio runs on this NATS server")?;
    let report = report(&bucket).await?;
    match args.output {
        Output::Human => print!("{}", human(&report, args.all)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Jsonl => println!("{}", serde_json::to_string(&report)?),
    }
    Ok(exit_code(&report))
}

/// Of a part that is silent nothing is known, whatever the others say; what is known to be missing counts more.
fn exit_code(report: &Report) -> i32 {
    let all_speak = report.silent.is_empty() && !report.balance.accounts.is_empty();
    match (report.exact, all_speak) {
        (false, _) => FINDINGS,
        (true, false) => CANNOT_TELL,
        (true, true) => 0,
    }
}

/// Reads until causes and effects have been told in their order, or at once when nothing moves.
async fn report(bucket: &Kv) -> anyhow::Result<Report> {
    let mut said = read(bucket).await?;
    let silent = take_silent(&mut said);
    let mut words = Words {
        agents: said.agents.clone(),
        correlators: said.correlators.clone(),
        agents_after: said.agents.clone(),
    };
    if !at_rest(&judge(&words)) {
        let agents = newest(words.agents.iter().map(|a| a.at));
        words.correlators = later(bucket, |s| s.correlators.clone(), |c| c.at > agents).await?;
        let correlators = newest(words.correlators.iter().map(|c| c.at));
        words.agents_after = later(bucket, |s| s.agents.clone(), |a| a.at > correlators).await?;
    }
    let balance = judge(&words);
    let correlators = words.correlators.iter().map(Replica::of).collect();
    Ok(Report { exact: balance.unaccounted.is_empty(), balance, correlators, storage: said.storage, silent })
}

/// Nothing is on its way and nothing is missing: nothing to wait for.
fn at_rest(balance: &Balance) -> bool {
    balance.unaccounted.is_empty() && balance.accounts.iter().all(|a| a.in_stream == 0)
}

fn newest(times: impl Iterator<Item = UnixNanos>) -> UnixNanos {
    times.max().unwrap_or_default()
}

/// What a side says once all of it that is not silent has spoken again; what it said last when that takes too long.
async fn later<T>(
    bucket: &Kv,
    side: impl Fn(&Said) -> Vec<T>,
    has_spoken: impl Fn(&T) -> bool,
) -> anyhow::Result<Vec<T>> {
    let deadline = Instant::now() + WORDS_WAIT_MAX;
    loop {
        let mut said = read(bucket).await?;
        take_silent(&mut said);
        let words = side(&said);
        if words.iter().all(&has_spoken) || Instant::now() >= deadline {
            return Ok(words);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn read(bucket: &Kv) -> anyhow::Result<Said> {
    let mut said = Said::default();
    let mut watch = bucket.watch(KEY_STATUS_PREFIX).await?;
    loop {
        let event =
            tokio::time::timeout(WORDS_WAIT_MAX, watch.next()).await.context("NATS does not answer")??;
        match event {
            KvEvent::Put { key, entry } => match key.split('.').nth(1) {
                Some("agent") => said.agents.extend(parse(&key, &entry.value)),
                Some("correlator") => said.correlators.extend(parse(&key, &entry.value)),
                Some("storage") => said.storage.extend(parse(&key, &entry.value)),
                _ => {}
            },
            KvEvent::Gone { .. } => {}
            KvEvent::Current => return Ok(said),
        }
    }
}

fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice(value)
        .map_err(|error| eprintln!("tapio: {key} is of another version: {error}"))
        .ok()
}

/// Takes out who has not spoken lately, and gives role and name of each that should have. What it said once is no
/// part of the sums: nobody can tell how far it came after its last word.
fn take_silent(said: &mut Said) -> Vec<(&'static str, String)> {
    let since = UnixNanos(SystemClock::new().now_unix_nanos()).minus(SILENT_AFTER.as_nanos() as u64);
    let mut silent = Vec::new();
    said.agents.retain(|a| {
        let speaks = a.at > since;
        if !speaks {
            silent.push(("agent", a.node.clone()));
        }
        speaks
    });
    said.correlators.retain(|c| {
        // A replica that has been stopped owns nothing; it is no news.
        let speaks = c.at > since;
        if !speaks && !c.shards.is_empty() {
            silent.push(("correlator", c.replica.clone()));
        }
        speaks
    });
    silent.extend(said.storage.iter().filter(|s| s.at <= since).map(|s| ("storage", s.name.clone())));
    said.storage.retain(|s| s.at > since);
    silent
}

impl Replica {
    fn of(status: &CorrelatorStatus) -> Self {
        Self {
            replica: status.replica.clone(),
            shards: status.shards.len(),
            lag_ms: u64::try_from(status.lag().as_millis()).unwrap_or(u64::MAX),
            circuit: status.circuit.clone(),
            findings: status.findings,
            batches_rejected: status.batches_rejected,
            batches_deferred: status.deferred.batches,
            deferred_seconds: status.deferred.seconds,
            producers_left_out: status.producers_left_out,
        }
    }
}

fn human(report: &Report, all: bool) -> String {
    let mut out = String::new();
    let mut accounts: Vec<&Account> = report.balance.accounts.iter().collect();
    accounts.sort_by_key(|a| (std::cmp::Reverse(a.missing), a.node.clone()));
    let _ = writeln!(
        out,
        "{:<20} {:>12} {:>12} {:>9} {:>9} {:>9} {:>12} {:>9} {:>9}  nats",
        "agent",
        "produced",
        "acknowledged",
        "spooled",
        "in flight",
        "in stream",
        "processed",
        "dropped",
        "missing"
    );
    let shown = if all { accounts.len() } else { AGENTS_SHOWN_MAX };
    for a in accounts.iter().take(shown) {
        let dropped: u64 = a.dropped.iter().map(|d| d.count).sum();
        let _ = writeln!(
            out,
            "{:<20} {:>12} {:>12} {:>9} {:>9} {:>9} {:>12} {:>9} {:>9}  {}",
            a.node,
            a.produced,
            a.acknowledged,
            a.spooled,
            a.in_flight,
            a.in_stream,
            a.processed,
            dropped,
            a.missing,
            a.circuit
        );
        for d in &a.dropped {
            let _ = writeln!(out, "  dropped {}.{}: {}", d.stage, d.reason, d.count);
        }
        watches(&mut out, &a.watches);
    }
    if accounts.len() > shown {
        let _ = writeln!(out, "and {} more: tapio status --all", accounts.len() - shown);
    }
    for r in &report.correlators {
        let _ = writeln!(
            out,
            "correlator {}: {} shards, {:.1} s behind, {} findings, {} batches refused, nats {}",
            r.replica,
            r.shards,
            r.lag_ms as f64 / 1000.0,
            r.findings,
            r.batches_rejected,
            r.circuit
        );
        if r.batches_deferred > 0 {
            let (batches, seconds) = (r.batches_deferred, r.deferred_seconds);
            let _ = writeln!(out, "  {batches} batches put aside, for {seconds} s already");
        }
        if r.producers_left_out > 0 {
            let _ = writeln!(out, "  {} producers are left out of its word", r.producers_left_out);
        }
    }
    for s in &report.storage {
        let refused: u64 = s.refused.iter().map(|d| d.count).sum();
        let _ = writeln!(
            out,
            "storage {}: {} findings received, {} stored, {refused} refused, {} waiting, nats {}",
            s.name, s.received, s.stored, s.behind, s.circuit
        );
        for gap in &s.gaps {
            let _ = writeln!(out, "  {gap}");
        }
    }
    for (role, name) in &report.silent {
        let _ = writeln!(out, "silent: {role} {name}");
    }
    let _ = match report.balance.unaccounted.as_slice() {
        [] if report.balance.accounts.is_empty() => writeln!(out, "balance: no agent speaks"),
        [] if !report.silent.is_empty() => writeln!(out, "balance: exact, as far as they speak"),
        [] => writeln!(out, "balance: exact"),
        lost => lost.iter().try_for_each(|u| {
            writeln!(
                out,
                "balance: {} events unaccounted between {} and {} ({})",
                u.events, u.after, u.before, u.node
            )
        }),
    };
    out
}

/// What an agent does not see of its cluster, and as of when the rest is known.
fn watches(out: &mut String, watches: &[WatchStatus]) {
    let live: Vec<&WatchStatus> = watches.iter().filter(|w| w.state == WatchState::Live).collect();
    if let Some(oldest) = live.iter().map(|watch| watch.heard_at).min() {
        let _ = writeln!(out, "  watches {} kinds, all heard since {oldest}", live.len());
    }
    for watch in watches.iter().filter(|w| !matches!(w.state, WatchState::Live | WatchState::Absent)) {
        let how = match watch.state {
            WatchState::Forbidden => "is not allowed to watch",
            WatchState::Failing => "cannot watch",
            WatchState::Stale => "hears nothing of",
            WatchState::Listing | WatchState::Live | WatchState::Absent => "is reading",
        };
        let reason = if watch.reason.is_empty() { String::new() } else { format!(": {}", watch.reason) };
        let _ = writeln!(out, "  {how} {}, last heard {}{reason}", watch.name, watch.heard_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Unaccounted;

    fn report(accounts: usize, lost: u64, silent: &[&'static str]) -> Report {
        let unaccounted = (lost > 0).then(|| Unaccounted {
            node: "n1".into(),
            events: lost,
            after: "the stream",
            before: "the correlator",
        });
        let balance = Balance {
            accounts: vec![Account::default(); accounts],
            unaccounted: unaccounted.into_iter().collect(),
        };
        let silent = silent.iter().map(|role| (*role, "n2".to_owned())).collect();
        Report { exact: lost == 0, balance, correlators: Vec::new(), storage: Vec::new(), silent }
    }

    #[test]
    fn what_an_agent_does_not_see_is_shown() {
        let watch = |name: &str, state, reason: &str| WatchStatus {
            name: name.to_owned(),
            state,
            since: UnixNanos(0),
            heard_at: UnixNanos(1_900_000_000_000_000_000),
            reason: reason.to_owned(),
        };
        let mut out = String::new();
        let all = [
            watch("pods", WatchState::Live, ""),
            watch("gateways.gateway.networking.k8s.io", WatchState::Absent, ""),
            watch("configmaps", WatchState::Forbidden, "no"),
        ];
        watches(&mut out, &all);
        let expected = "  watches 1 kinds, all heard since 2030-03-17T17:46:40.000Z\n  \
            is not allowed to watch configmaps, last heard 2030-03-17T17:46:40.000Z: no\n";
        assert_eq!(out, expected);
    }

    #[test]
    fn a_silent_part_is_not_taken_for_all_is_well() {
        let cases = [
            (report(1, 0, &[]), 0, "balance: exact\n"),
            (
                report(1, 0, &["agent"]),
                CANNOT_TELL,
                "silent: agent n2\nbalance: exact, as far as they speak\n",
            ),
            (
                report(1, 0, &["storage"]),
                CANNOT_TELL,
                "silent: storage n2\nbalance: exact, as far as they speak\n",
            ),
            (report(0, 0, &["agent"]), CANNOT_TELL, "silent: agent n2\nbalance: no agent speaks\n"),
            (report(1, 3, &["agent"]), FINDINGS, "the correlator (n1)\n"),
        ];
        for (report, code, end) in cases {
            assert_eq!(exit_code(&report), code, "{report:?}");
            let text = human(&report, true);
            assert!(text.ends_with(end), "{text}");
        }
    }
}
