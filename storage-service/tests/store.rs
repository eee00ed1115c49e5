//! The store by itself: what it keeps, finds, forgets and gives back.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{EPOCH, SECOND, finding, incoming, link};
use proptest::prelude::*;
use tapio_schemas::finding::{Hypothesis, Prediction, Status};
use tapio_schemas::{Entity, Finding, FindingId, Score, Severity, UnixNanos};
use tapio_storage::store::{
    Filter, Incoming, Limits, PageSize, Position, PutReport, Store, StoreError, StoreMetrics, StoreOptions,
};

const EVERYTHING: PageSize = PageSize { findings: 10_000, bytes: usize::MAX };
const FOREVER: Limits = Limits { age_max: Duration::MAX, bytes_max: u64::MAX };

struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
}

fn open(dir: &std::path::Path) -> Store {
    Store::open(&StoreOptions::new(dir), StoreMetrics::default(), EPOCH).unwrap()
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    Fixture { dir, store }
}

impl Fixture {
    fn put(&self, findings: impl IntoIterator<Item = Finding>) -> PutReport {
        self.put_at(findings, EPOCH)
    }

    fn put_at(&self, findings: impl IntoIterator<Item = Finding>, now: UnixNanos) -> PutReport {
        self.store.put(findings.into_iter().map(incoming).collect(), now).unwrap()
    }

    fn titles(&self, filter: &Filter) -> Vec<String> {
        let page = self.store.list(filter, None, EVERYTHING).unwrap();
        assert_eq!(page.next, None);
        page.findings.iter().map(|stored| stored.finding.title.clone()).collect()
    }

    fn all(&self) -> Vec<String> {
        self.titles(&Filter::default())
    }

    fn reopen(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = open(dir.path());
        Self { dir, store }
    }
}

fn unsure(finding: Finding) -> Finding {
    Finding { confidence: Score::clamped(0.7), ..finding }
}

#[test]
fn only_what_is_sure_is_stored_and_a_stored_finding_can_end() {
    let it = fixture();
    let barely = Finding { confidence: Score::clamped(0.7001), ..finding(1) };
    let report = it.put([unsure(finding(0)), barely]);
    assert_eq!((report.stored.len(), report.low_confidence), (1, 1));
    assert_eq!(it.all(), ["finding 1"]);

    let doubt = Finding { revision: 2, title: "doubt".into(), ..unsure(finding(1)) };
    assert_eq!(it.put([doubt]).low_confidence, 1);
    let recovered = |number| Finding { revision: 3, status: Status::Recovered, ..unsure(finding(number)) };
    let report = it.put([recovered(1), recovered(0)]);
    assert_eq!((report.stored.len(), report.low_confidence), (1, 1), "finding 0 was never stored");
    let active = Filter { status: Some(Status::Active), ..Filter::default() };
    assert!(it.titles(&active).is_empty(), "not active for ever");
}

#[test]
fn a_revision_is_stored_once_and_the_newest_is_shown() {
    let it = fixture();
    let revision = |revision: u32, severity| Finding {
        revision,
        severity,
        title: format!("revision {revision}"),
        updated_at: EPOCH.plus(u64::from(revision) * SECOND),
        ..finding(0)
    };
    let (one, two) = (revision(1, Severity::Critical), revision(2, Severity::Warning));
    assert_eq!(it.put([one.clone(), two.clone(), one.clone()]).duplicates, 1);
    assert_eq!(it.put([two.clone(), one.clone()]).duplicates, 2);
    let other = Finding { title: "another".into(), ..two.clone() };
    assert_eq!(it.put([other]).conflicting, 1);
    assert_eq!(it.all(), ["revision 2"], "the first document stays");
    let critical = Filter { min_severity: Some(Severity::Critical), ..Filter::default() };
    assert!(it.titles(&critical).is_empty(), "the index of revision 1 is gone");

    let it = it.reopen();
    assert_eq!(it.put([two.clone()]).duplicates, 1, "also after opening again");
    let get = |revision| it.store.get(one.id, revision).unwrap().map(|stored| stored.finding.clone());
    assert_eq!(get(Some(1)), Some(one.clone()));
    assert_eq!(get(None), Some(two));
    assert_eq!(get(Some(3)), None);
    assert_eq!(it.store.totals().unwrap().records, 2);

    // An old revision that comes late is kept and changes nothing that is shown.
    it.put([revision(5, Severity::Info), revision(4, Severity::Critical)]);
    assert_eq!(it.all(), ["revision 5"]);
    assert!(it.titles(&critical).is_empty());
}

#[test]
fn revisions_of_one_finding_are_bounded() {
    let it = fixture();
    for revision in 1..=100 {
        it.put([Finding { revision, ..finding(0) }]);
    }
    assert_eq!(it.store.totals().unwrap().records, 64);
    assert!(it.store.get(finding(0).id, Some(36)).unwrap().is_none());
    assert!(it.store.get(finding(0).id, Some(37)).unwrap().is_some());
    assert_eq!(it.all().len(), 1);
    assert_eq!(it.store.export(&mut std::io::sink()).unwrap(), 64, "the retention keys went too");
}

#[test]
fn why_prefers_root_causes_and_knows_names_as_people_write_them() {
    let it = fixture();
    let mut cgroup = finding(0);
    let demo = Entity::new("Cgroup", "", "/demo/leak", "n1");
    cgroup.root_cause.as_mut().unwrap().entity = demo.clone();
    cgroup.chain = vec![link(EPOCH, demo)];
    let mut web = finding(5);
    web.root_cause.as_mut().unwrap().entity = Entity::namespaced("Deployment", "shop", "web");
    it.put([cgroup, finding(1), finding(2), web]);
    let why = |query: &str| {
        let stored = it.store.why(&Entity::parse_query(query)).unwrap();
        stored.map(|stored| stored.finding.title.clone()).unwrap_or_default()
    };
    assert_eq!(why("api"), "finding 2", "the newest root cause goes before a newer mention");
    assert_eq!(why("shop/Deployment/api"), "finding 2");
    assert_eq!(why("other/deployment/api"), "");
    assert_eq!(why("api-1"), "finding 5", "the newest mention");
    assert_eq!(why("shop/container/api-1/app"), "finding 5");
    assert_eq!(why("/demo/leak"), "finding 0");
    assert_eq!(why("demo/leak"), "", "a kind and a name");
    assert_eq!(why("web"), "finding 5");
}

#[test]
fn while_no_cause_is_proven_a_finding_is_found_under_the_likely_one() {
    let it = fixture();
    let mut unproven = finding(0);
    let suspect = unproven.root_cause.take().unwrap().entity;
    let likely = |entity: Entity, probability| Hypothesis {
        entity,
        cause: "memory.leak".into(),
        probability: Score::clamped(probability),
        explains: vec![],
        missing: vec![],
        refuted_by: vec![],
    };
    let other = likely(Entity::namespaced("Deployment", "shop", "web"), 0.2);
    (unproven.status, unproven.hypotheses) = (Status::NotProvable, vec![likely(suspect, 0.5), other]);
    unproven.chain = vec![link(EPOCH, Entity::namespaced("Pod", "shop", "a-pod"))];
    it.put([unproven]);
    let found = |query: &str| {
        let entity = Entity::parse_query(query);
        let filter = Filter { entity: Some(entity.clone()), ..Filter::default() };
        (it.titles(&filter).len(), it.store.why(&entity).unwrap().is_some())
    };
    assert_eq!(found("deploy/api"), (1, true));
    assert_eq!(found("pod/a-pod"), (1, true));
    assert_eq!(found("deploy/web"), (0, false), "of several the likeliest");
}

#[test]
fn age_and_bytes_are_bounded_and_counted() {
    let it = fixture();
    for number in 0..10 {
        it.put_at([finding(number)], EPOCH.plus(number * SECOND));
    }
    let now = EPOCH.plus(10 * SECOND);
    assert_eq!(it.store.enforce(FOREVER, now).unwrap(), Default::default());
    let limits = Limits { age_max: Duration::from_secs(7), ..FOREVER };
    assert_eq!(it.store.enforce(limits, now).unwrap().by_age, 3);
    assert_eq!(it.all().len(), 7);

    let bytes_max = it.store.totals().unwrap().bytes / 2;
    let limits = Limits { bytes_max, ..FOREVER };
    let report = it.store.enforce(limits, now).unwrap();
    assert_eq!((report.by_age, report.by_bytes, report.more), (0, 4, false));
    assert!(it.store.totals().unwrap().bytes <= bytes_max);
    assert_eq!(it.all(), ["finding 9", "finding 8", "finding 7"]);
    let memory = Filter { cause: Some("memory".into()), ..Filter::default() };
    assert_eq!(it.titles(&memory).len(), 3, "the indexes went with the records");
    assert_eq!(it.store.get(finding(0).id, Some(1)).unwrap(), None);
    let it = it.reopen();
    assert_eq!(it.store.totals().unwrap().records, 3);
}

#[test]
fn what_was_seen_long_ago_but_stored_now_is_kept() {
    let it = fixture();
    let a_year = UnixNanos(365 * 24 * 3600 * SECOND);
    it.put_at([finding(0)], EPOCH.plus(a_year.0));
    let limits = Limits { age_max: Duration::from_secs(3600), ..FOREVER };
    assert_eq!(it.store.enforce(limits, EPOCH.plus(a_year.0)).unwrap().by_age, 0);
    assert_eq!(it.all(), ["finding 0"]);
}

#[test]
fn an_export_can_be_imported_elsewhere_byte_for_byte() {
    let it = fixture();
    it.put((0..300).map(finding));
    it.put([Finding { revision: 2, ..finding(7) }]);
    let mut lines = Vec::new();
    assert_eq!(it.store.export(&mut lines).unwrap(), 301);
    let other = fixture();
    let report = other.store.import(&mut &lines[..], EPOCH).unwrap();
    assert_eq!((report.stored, report.known), (301, 0));
    let report = other.store.import(&mut &lines[..], EPOCH).unwrap();
    assert_eq!((report.stored, report.known), (0, 301));
    let mut again = Vec::new();
    other.store.export(&mut again).unwrap();
    let sorted = |lines: &[u8]| {
        let mut lines: Vec<_> = lines.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&lines), sorted(&again));

    let broken = [&lines[..], b"{\n"].concat();
    let error = other.store.import(&mut &broken[..], EPOCH).unwrap_err();
    assert!(matches!(error, StoreError::Import { line: 302, .. }), "{error}");
}

#[test]
fn a_page_is_bounded_in_bytes_but_never_empty() {
    let it = fixture();
    it.put((0..5).map(finding));
    let one = common::json(&finding(0)).len();
    let pages = |bytes| {
        let (mut sizes, mut after) = (Vec::new(), None);
        loop {
            let page = it.store.list(&Filter::default(), after, PageSize { bytes, findings: 4 }).unwrap();
            sizes.push(page.findings.len());
            after = page.next;
            if after.is_none() {
                return sizes;
            }
        }
    };
    assert_eq!(pages(usize::MAX), [4, 1]);
    assert_eq!(pages(2 * one), [2, 2, 1]);
    assert_eq!(pages(1), [1, 1, 1, 1, 1]);
}

#[test]
fn one_process_at_a_time() {
    let it = fixture();
    let second = Store::open(&StoreOptions::new(it.dir.path()), StoreMetrics::default(), EPOCH);
    assert!(matches!(second, Err(StoreError::Open { .. })));
}

/// What a test changes about a finding.
#[derive(Debug, Clone)]
struct Shape {
    id: u128,
    revision: u32,
    at: u64,
    severity: Severity,
    cause: Option<&'static str>,
    root: &'static str,
    chain: Vec<&'static str>,
    status: Status,
    confidence: f64,
}

const NAMES: [&str; 5] = ["api", "api/app", "/api", "web", "web/app"];

fn shapes() -> impl Strategy<Value = Vec<Shape>> {
    let names = prop::sample::select(&NAMES[..]);
    let shape = (
        (0..6u128, 1..4u32, 0..5u64),
        prop::sample::select(Severity::ALL),
        prop::option::of(prop::sample::select(&["memory.leak", "memory.limit", "cpu.throttling"][..])),
        (names.clone(), prop::collection::vec(names, 0..3)),
        prop::sample::select(&[Status::Active, Status::Recovered][..]),
        prop::sample::select(&[0.5, 0.9][..]),
    );
    let shape = shape.prop_map(|((id, revision, at), severity, cause, (root, chain), status, confidence)| {
        Shape { id, revision, at, severity, cause, root, chain, status, confidence }
    });
    prop::collection::vec(shape, 0..24)
}

fn shaped(shape: &Shape) -> Finding {
    let entity = |name: &str| Entity::namespaced("Thing", "", name);
    let mut finding = finding(0);
    finding.id = FindingId(shape.id);
    finding.revision = shape.revision;
    finding.updated_at = EPOCH.plus(shape.at);
    finding.severity = shape.severity;
    finding.status = shape.status;
    finding.confidence = Score::clamped(shape.confidence);
    finding.chain = shape.chain.iter().map(|name| link(EPOCH, entity(name))).collect();
    let root = finding.root_cause.take().unwrap();
    let seat = entity(shape.root);
    finding.root_cause = shape.cause.map(|cause| tapio_schemas::finding::RootCause {
        entity: seat,
        cause: cause.into(),
        ..root
    });
    let foretells = shape.cause.is_some_and(|cause| cause.starts_with("memory"));
    finding.prediction = foretells.then(|| Prediction {
        entity: None,
        scenario: "oom_kill".into(),
        probability: finding.confidence,
        at: finding.updated_at,
        interval: (finding.updated_at, finding.updated_at),
        outcome: None,
    });
    finding
}

/// The rules, in memory.
#[derive(Default)]
struct Model(BTreeMap<FindingId, BTreeMap<u32, Finding>>);

impl Model {
    fn put(&mut self, finding: Finding) {
        let revisions = self.0.get(&finding.id);
        let latest = revisions.and_then(|revisions| revisions.keys().last().copied());
        let ends = finding.status != Status::Active && latest.is_some_and(|l| finding.revision > l);
        if finding.confidence.get() > 0.7 || ends {
            self.0.entry(finding.id).or_default().entry(finding.revision).or_insert(finding);
        }
    }

    fn list(&self, filter: &Filter) -> Vec<Finding> {
        let latest = self.0.values().filter_map(|revisions| revisions.values().last());
        let mut found: Vec<_> = latest.filter(|finding| filter.accepts(finding)).cloned().collect();
        found.sort_by_key(|finding| std::cmp::Reverse((finding.updated_at, finding.id)));
        found
    }
}

fn filters() -> impl Strategy<Value = Filter> {
    let queries = &["api", "web", "api/app", "thing/api", "/api", "x/thing/web"][..];
    let causes = &["memory", "memory.leak", "cpu", "mem"][..];
    (
        prop::option::of(prop::sample::select(queries)),
        prop::option::of(prop::sample::select(causes)),
        prop::option::of(prop::sample::select(Severity::ALL)),
        prop::option::of(prop::sample::select(Status::ALL)),
        (0..4u64, prop::option::of(0..6u64)),
        any::<bool>(),
    )
        .prop_map(|(entity, cause, min_severity, status, (since, until), with_prediction)| Filter {
            since: EPOCH.plus(since),
            until: until.map(|until| EPOCH.plus(until)),
            entity: entity.map(Entity::parse_query),
            cause: cause.map(Into::into),
            min_severity,
            status,
            with_prediction,
        })
}

fn list_by_pages(store: &Store, filter: &Filter, findings: usize) -> Vec<Finding> {
    let (mut all, mut after): (Vec<Finding>, Option<Position>) = (Vec::new(), None);
    loop {
        let size = PageSize { findings, bytes: usize::MAX };
        let page = store.list(filter, after, size).unwrap();
        assert!(page.findings.len() <= findings);
        all.extend(page.findings.iter().map(|stored| stored.finding.clone()));
        after = page.next;
        if after.is_none() {
            return all;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any batches of any findings in any order are found as the rules say, page by page, before and
    /// after the store is opened again; putting them again changes nothing.
    #[test]
    fn answers_are_those_of_the_rules(
        batches in prop::collection::vec(shapes(), 1..4),
        filters in prop::collection::vec(filters(), 1..8),
        page in 1..5usize,
    ) {
        let mut model = Model::default();
        let mut it = fixture();
        let findings = |batch: &[Shape]| batch.iter().map(shaped).collect::<Vec<_>>();
        for batch in &batches {
            let report = it.put(findings(batch));
            let fates = report.stored.len() as u64 + report.duplicates + report.conflicting + report.low_confidence;
            prop_assert_eq!(fates, batch.len() as u64, "each finding has one fate");
            findings(batch).into_iter().for_each(|finding| model.put(finding));
        }
        for reopened in [false, true] {
            if reopened {
                it = it.reopen();
            }
            for filter in &filters {
                prop_assert_eq!(list_by_pages(&it.store, filter, page), model.list(filter), "{:?}", filter);
            }
        }
        let before = it.store.totals().unwrap();
        let stored: Vec<_> = model.0.values().flat_map(|r| r.values().cloned()).map(incoming).collect();
        prop_assert_eq!(before.records, stored.len() as u64);
        let again: Vec<Incoming> = stored;
        prop_assert_eq!(it.store.put(again, EPOCH).unwrap().stored.len(), 0);
        prop_assert_eq!(it.store.totals().unwrap(), before);
        // Everything can be forgotten, and nothing is left.
        it.store.enforce(Limits { bytes_max: 0, ..FOREVER }, EPOCH).unwrap();
        prop_assert_eq!(it.store.totals().unwrap().bytes, 0);
        prop_assert!(it.all().is_empty());
    }
}
