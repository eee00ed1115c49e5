//! Which metrics of a part of a cluster say how it fares, and what they say.
//!
//! Thresholds are the correlator's (`correlator/src/shards/series/plane.rs`); here numbers are only made comparable: a
//! quantile, a share or a count of the time since the last scrape.

use std::time::Duration;

use super::config::Role;
use super::exposition::Sample;
use super::tally::{Slot, Tally};

/// Requests of an interval that a share or a quantile must rest on.
const COUNT_MIN: f64 = 20.0;
/// Lookups of an interval below which it costs nobody anything that most of them are in vain.
const LOOKUPS_MIN: f64 = 1000.0;
/// Verbs that are meant to last.
const LONG_VERBS: [&str; 4] = ["WATCH", "WATCHLIST", "CONNECT", "PROXY"];
/// Subresources that stream.
const STREAMS: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];

/// Of what a reading speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// A part of the control plane, by its name.
    Component(&'static str),
    /// The cluster's name service.
    Dns,
    /// The target's machine.
    Machine,
}

/// A number that says how something fares.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Name of the gauge.
    pub metric: &'static str,
    /// Unit of UCUM.
    pub unit: &'static str,
    /// Of what.
    pub about: About,
    /// The number.
    pub value: f64,
    /// Which of several it is, such as the name of a queue.
    pub which: String,
}

impl Role {
    /// Of what the target itself is a part.
    pub fn about(self) -> About {
        match self {
            Self::ApiServer => About::Component("kube-apiserver"),
            Self::Scheduler => About::Component("kube-scheduler"),
            Self::ControllerManager => About::Component("kube-controller-manager"),
            Self::Etcd => About::Component("etcd"),
            Self::CoreDns => About::Dns,
            Self::Kubelet | Self::Node | Self::Other => About::Machine,
        }
    }

    /// Where a sample goes; nothing for most.
    pub fn slot(self, sample: &Sample<'_>) -> Option<Slot> {
        match self {
            Self::ApiServer => api_server(sample),
            Self::Scheduler => scheduler(sample),
            Self::ControllerManager => queues(sample),
            Self::Etcd => etcd(sample),
            Self::CoreDns => core_dns(sample),
            Self::Kubelet => match sample.name {
                "kubelet_pleg_relist_duration_seconds_bucket" => Some(Slot::Bucket("pleg")),
                _ => None,
            },
            Self::Node => match sample.name {
                "node_nf_conntrack_entries" => Some(Slot::Sum("conntrack")),
                "node_nf_conntrack_entries_limit" => Some(Slot::Sum("conntrack_max")),
                "node_timex_offset_seconds" => Some(Slot::Sum("offset")),
                _ => None,
            },
            Self::Other => None,
        }
    }

    /// What `now` says, and what it says of the time since `before`.
    pub fn readings(self, now: &Tally, before: Option<&Tally>, changes: u32) -> Vec<Reading> {
        let mut out = Readings { about: self.about(), all: Vec::new() };
        let nothing = Tally::default();
        let before = before.unwrap_or(&nothing);
        match self {
            Self::ApiServer => of_api_server(now, before, &mut out),
            Self::Scheduler | Self::ControllerManager => {
                out.add("k8s.scheduler.pending", "{pod}", now.sum("pending"));
                let (depth, which) = now.largest("depth").unzip();
                out.named("k8s.workqueue.depth", "{item}", depth, which.unwrap_or_default());
            }
            Self::Etcd => {
                out.add("etcd.wal_fsync.p99", "s", now.quantile(before, "fsync", 0.99, COUNT_MIN));
                out.add("etcd.backend_commit.p99", "s", now.quantile(before, "commit", 0.99, COUNT_MIN));
                out.add("etcd.db.share", "1", share(now.sum("db"), now.sum("quota")));
                out.add("etcd.leader.changes", "{change}", now.sum("changes").map(|_| f64::from(changes)));
                out.named(
                    "k8s.component.failing",
                    "1",
                    now.sum("leader").map(|has| 1.0 - has.min(1.0)),
                    "leader",
                );
            }
            Self::CoreDns => of_core_dns(now, before, &mut out),
            Self::Kubelet => {
                // A relist is rare: one that is slow says enough.
                out.add("kubelet.pleg.relist.p99", "s", now.quantile(before, "pleg", 0.99, 1.0));
            }
            Self::Node => {
                out.add(
                    "system.network.conntrack.share",
                    "1",
                    share(now.sum("conntrack"), now.sum("conntrack_max")),
                );
                out.add("system.clock.offset", "s", now.sum("offset").map(f64::abs));
            }
            Self::Other => {}
        }
        out.all
    }
}

struct Readings {
    about: About,
    all: Vec<Reading>,
}

impl Readings {
    fn add(&mut self, metric: &'static str, unit: &'static str, value: Option<f64>) {
        self.named(metric, unit, value, "");
    }

    fn named(&mut self, metric: &'static str, unit: &'static str, value: Option<f64>, which: &str) {
        let Some(value) = value.filter(|value| value.is_finite()) else { return };
        self.all.push(Reading { metric, unit, about: self.about, value, which: which.to_owned() });
    }
}

fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    whole.filter(|whole| *whole > 0.0).and_then(|whole| Some(part? / whole))
}

fn api_server(sample: &Sample<'_>) -> Option<Slot> {
    let lasts = LONG_VERBS.contains(&sample.label("verb")) || STREAMS.contains(&sample.label("subresource"));
    match sample.name {
        // Without what waits for webhooks, where the server has it.
        "apiserver_request_sli_duration_seconds_bucket" if !lasts => Some(Slot::Bucket("sli")),
        "apiserver_request_duration_seconds_bucket" if !lasts => Some(Slot::Bucket("requests")),
        "apiserver_request_total" if !lasts => Some(match sample.label("code") {
            "429" => Slot::Sum("throttled"),
            code if code.starts_with('5') => Slot::Sum("failed"),
            _ => Slot::Sum("answered"),
        }),
        "apiserver_flowcontrol_rejected_requests_total" => Some(Slot::Sum("rejected")),
        "apiserver_request_terminations_total" => Some(Slot::Sum("terminated")),
        "etcd_request_duration_seconds_bucket" => Some(Slot::Bucket("etcd")),
        _ => None,
    }
}

fn of_api_server(now: &Tally, before: &Tally, out: &mut Readings) {
    let slow = now.quantile(before, "sli", 0.99, COUNT_MIN);
    let slow = slow.or_else(|| now.quantile(before, "requests", 0.99, COUNT_MIN));
    out.add("k8s.api_server.request.p99", "s", slow);
    // A counter that has never counted is not there, and is zero.
    let grown = |name: &str| match (now.sum(name), before.sum(name)) {
        (Some(now), None) => now,
        _ => now.growth(before, name).unwrap_or(0.0),
    };
    if before.sum("answered").is_some() {
        let (throttled, failed, answered) = (grown("throttled"), grown("failed"), grown("answered"));
        let all = throttled + failed + answered;
        // What flow control rejects is answered with 429 and counted there as well.
        let refused = throttled.max(grown("rejected")) + grown("terminated");
        if all >= COUNT_MIN {
            out.add("k8s.api_server.refused.share", "1", Some((refused / all).min(1.0)));
            out.add("k8s.api_server.failed.share", "1", Some(failed / all));
        }
    }
    out.about = About::Component("etcd");
    out.add("k8s.etcd.request.p99", "s", now.quantile(before, "etcd", 0.99, COUNT_MIN));
}

fn scheduler(sample: &Sample<'_>) -> Option<Slot> {
    match sample.name {
        // What does not fit anywhere is no backlog of the scheduler.
        "scheduler_pending_pods" if ["active", "backoff"].contains(&sample.label("queue")) => {
            Some(Slot::Sum("pending"))
        }
        _ => queues(sample),
    }
}

fn queues(sample: &Sample<'_>) -> Option<Slot> {
    (sample.name == "workqueue_depth").then_some(Slot::Max("depth", "name"))
}

fn etcd(sample: &Sample<'_>) -> Option<Slot> {
    match sample.name {
        "etcd_disk_wal_fsync_duration_seconds_bucket" => Some(Slot::Bucket("fsync")),
        "etcd_disk_backend_commit_duration_seconds_bucket" => Some(Slot::Bucket("commit")),
        "etcd_mvcc_db_total_size_in_bytes" => Some(Slot::Sum("db")),
        "etcd_server_quota_backend_bytes" => Some(Slot::Sum("quota")),
        "etcd_server_leader_changes_seen_total" => Some(Slot::Sum("changes")),
        "etcd_server_has_leader" => Some(Slot::Sum("leader")),
        _ => None,
    }
}

fn core_dns(sample: &Sample<'_>) -> Option<Slot> {
    match sample.name {
        "coredns_dns_responses_total" | "coredns_dns_response_rcode_count_total" => {
            // That a name does not exist is an answer.
            Some(match sample.label("rcode") {
                "SERVFAIL" | "REFUSED" => Slot::Sum("failed"),
                "NXDOMAIN" => Slot::Sum("unknown"),
                _ => Slot::Sum("answered"),
            })
        }
        "coredns_dns_request_duration_seconds_bucket" => Some(Slot::Bucket("requests")),
        "coredns_forward_healthcheck_broken_total" | "coredns_proxy_healthcheck_broken_total" => {
            Some(Slot::Sum("broken"))
        }
        "coredns_panics_total" => Some(Slot::Sum("panics")),
        _ => None,
    }
}

fn of_core_dns(now: &Tally, before: &Tally, out: &mut Readings) {
    let grown = |name: &str| match (now.sum(name), before.sum(name)) {
        (Some(now), None) => now,
        _ => now.growth(before, name).unwrap_or(0.0),
    };
    // A name server counts each kind of answer from its first one on: any of them says that it was counted before.
    if ["answered", "unknown", "failed"].iter().any(|name| before.sum(name).is_some()) {
        let (failed, unknown, found) = (grown("failed"), grown("unknown"), grown("answered"));
        if failed + unknown + found >= COUNT_MIN {
            out.add("dns.failed.share", "1", Some(failed / (failed + unknown + found)));
        }
        if unknown + found >= LOOKUPS_MIN {
            out.add("dns.unknown.ratio", "1", Some(unknown / found.max(1.0)));
        }
        let broken = now.sum("broken").map(|_| grown("broken"));
        out.named("dns.broken", "{event}", broken, "no upstream is healthy");
        let panics = now.sum("panics").map(|_| grown("panics"));
        out.named("dns.broken", "{event}", panics, "it panicked");
    }
    out.add("dns.request.p99", "s", now.quantile(before, "requests", 0.99, COUNT_MIN));
}

/// Changes of a leader are counted over this time, as the public rules do.
pub const LEADERS_WITHIN: Duration = Duration::from_secs(15 * 60);

#[cfg(test)]
mod tests {
    use super::super::exposition::parse;
    use super::*;

    fn tally(role: Role, text: &str) -> Tally {
        let mut tally = Tally::default();
        for sample in text.lines().filter_map(|line| parse(line).unwrap()) {
            if let Some(slot) = role.slot(&sample) {
                tally.take(slot, &sample);
            }
        }
        tally
    }

    fn value(readings: &[Reading], metric: &str) -> Option<f64> {
        readings.iter().find(|reading| reading.metric == metric).map(|reading| reading.value)
    }

    fn requests(fast: u32, all: u32, codes: [u32; 3]) -> String {
        let bucket = |le: &str, count: u32| {
            format!(
                "apiserver_request_duration_seconds_bucket{{verb=\"GET\",resource=\"pods\",le=\"{le}\"}} {count}\n"
            )
        };
        let watch = "apiserver_request_duration_seconds_bucket{verb=\"WATCH\",le=\"+Inf\"} 99999\n";
        let [ok, throttled, failed] = codes;
        bucket("0.1", fast)
            + &bucket("4", all)
            + &bucket("+Inf", all)
            + watch
            + &format!(
                "apiserver_request_total{{verb=\"GET\",code=\"200\"}} {ok}\n\
                 apiserver_request_total{{verb=\"GET\",code=\"429\"}} {throttled}\n\
                 apiserver_request_total{{verb=\"GET\",code=\"503\"}} {failed}\n"
            )
    }

    #[test]
    fn an_api_server_is_slow_refuses_and_fails() {
        let role = Role::ApiServer;
        let before = tally(role, &requests(1000, 1000, [1000, 0, 0]));
        let after = tally(role, &requests(1050, 1100, [1070, 20, 10]));
        assert_eq!(role.readings(&after, None, 0), [], "one scrape alone says nothing of the time before it");
        let readings = role.readings(&after, Some(&before), 0);
        let slow = value(&readings, "k8s.api_server.request.p99").unwrap();
        assert!((3.5..4.0).contains(&slow), "watches are left out: {slow}");
        assert_eq!(value(&readings, "k8s.api_server.refused.share"), Some(0.2));
        assert_eq!(value(&readings, "k8s.api_server.failed.share"), Some(0.1));
        let quiet = role.readings(&before, Some(&before), 0);
        assert_eq!(quiet, [], "nobody asked anything");
    }

    #[test]
    fn etcd_tells_its_room_its_leader_and_its_disk() {
        let text = |slow: u32, leader: u32| {
            format!(
                "etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"0.008\"}} 100\n\
                 etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"1.024\"}} {slow}\n\
                 etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"+Inf\"}} {slow}\n\
                 etcd_mvcc_db_total_size_in_bytes 2.0e9\netcd_server_quota_backend_bytes 2.147483648e9\n\
                 etcd_server_leader_changes_seen_total 7\netcd_server_has_leader {leader}\n"
            )
        };
        let role = Role::Etcd;
        let (before, after) = (tally(role, &text(100, 1)), tally(role, &text(200, 0)));
        let readings = role.readings(&after, Some(&before), 5);
        assert!(value(&readings, "etcd.wal_fsync.p99").unwrap() > 1.0);
        assert!(value(&readings, "etcd.db.share").unwrap() > 0.93);
        assert_eq!(value(&readings, "etcd.leader.changes"), Some(5.0));
        assert_eq!(value(&readings, "k8s.component.failing"), Some(1.0));
        assert!(readings.iter().all(|reading| reading.about == About::Component("etcd")));
    }

    #[test]
    fn a_name_that_does_not_exist_is_an_answer_of_the_name_service() {
        let text = |ok: u32, unknown: u32, failed: u32| {
            format!(
                "coredns_dns_responses_total{{rcode=\"NOERROR\"}} {ok}\ncoredns_dns_responses_total{{rcode=\"NXDOMAIN\"}} {unknown}\n\
                 coredns_dns_responses_total{{rcode=\"SERVFAIL\"}} {failed}\ncoredns_panics_total 0\n"
            )
        };
        let role = Role::CoreDns;
        let before = tally(role, &text(100, 100, 0));
        let share =
            |after: &str| value(&role.readings(&tally(role, after), Some(&before), 0), "dns.failed.share");
        assert_eq!(share(&text(110, 190, 0)), Some(0.0));
        assert_eq!(share(&text(130, 130, 40)), Some(0.4));
        let ratio =
            |after: &str| value(&role.readings(&tally(role, after), Some(&before), 0), "dns.unknown.ratio");
        assert_eq!(ratio(&text(400, 1300, 0)), Some(4.0));
        assert_eq!(ratio(&text(100, 1200, 0)), Some(1100.0), "of a ratio to nothing the number is told");
        assert_eq!(ratio(&text(120, 300, 0)), None, "too few to matter");
    }

    #[test]
    fn a_name_service_that_never_found_a_name_fails_all_the_same() {
        let role = Role::CoreDns;
        for rcode in ["SERVFAIL", "NXDOMAIN"] {
            let text = |count: u32| format!("coredns_dns_responses_total{{rcode=\"{rcode}\"}} {count}\n");
            let readings = role.readings(&tally(role, &text(500)), Some(&tally(role, &text(100))), 0);
            let expected = if rcode == "SERVFAIL" { 1.0 } else { 0.0 };
            assert_eq!(value(&readings, "dns.failed.share"), Some(expected), "{rcode}");
        }
        let silent = role.readings(
            &tally(role, "coredns_dns_responses_total{rcode=\"SERVFAIL\"} 400\n"),
            Some(&Tally::default()),
            0,
        );
        assert_eq!(value(&silent, "dns.failed.share"), None, "nobody knows since when");
    }

    #[test]
    fn queues_machines_and_kubelets() {
        let depth = tally(
            Role::ControllerManager,
            "workqueue_depth{name=\"job\"} 3\nworkqueue_depth{name=\"gc\"} 400",
        );
        let readings = Role::ControllerManager.readings(&depth, None, 0);
        assert_eq!((readings[0].value, readings[0].which.as_str()), (400.0, "gc"));
        let pending = "scheduler_pending_pods{queue=\"active\"} 60\nscheduler_pending_pods{queue=\"unschedulable\"} 900";
        let readings = Role::Scheduler.readings(&tally(Role::Scheduler, pending), None, 0);
        assert_eq!(value(&readings, "k8s.scheduler.pending"), Some(60.0));
        let node = "node_nf_conntrack_entries 900\nnode_nf_conntrack_entries_limit 1000\nnode_timex_offset_seconds -0.2";
        let readings = Role::Node.readings(&tally(Role::Node, node), None, 0);
        assert_eq!(value(&readings, "system.network.conntrack.share"), Some(0.9));
        assert_eq!(value(&readings, "system.clock.offset"), Some(0.2));
        let pleg = |slow: u32| {
            format!(
                "kubelet_pleg_relist_duration_seconds_bucket{{le=\"1\"}} 5\nkubelet_pleg_relist_duration_seconds_bucket{{le=\"+Inf\"}} {slow}"
            )
        };
        let (before, after) = (tally(Role::Kubelet, &pleg(5)), tally(Role::Kubelet, &pleg(6)));
        assert_eq!(
            value(&Role::Kubelet.readings(&after, Some(&before), 0), "kubelet.pleg.relist.p99"),
            Some(1.0)
        );
    }
}
