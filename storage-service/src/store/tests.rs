//! What needs the inside of the store: older formats, damage, the cache.

use std::path::Path;

use tapio_schemas::finding::FINDING_SCHEMA;
use tapio_schemas::{Entity, Finding, Severity};

use super::*;

const NOW: UnixNanos = UnixNanos(1_700_000_000_000_000_000);

fn finding(id: u128, revision: u32) -> Finding {
    let text = format!(
        r#"{{"schema":"{FINDING_SCHEMA}","id":"fnd-{id:032x}","revision":{revision},"status":"active",
        "cluster":"c","severity":"error","title":"{id}/{revision}","story":"",
        "opened_at":"2026-01-01T00:00:00Z","first_bad_at":"2026-01-01T00:00:00Z",
        "updated_at":"2026-01-01T00:00:00Z","emitted_at":"2026-01-01T00:00:00Z","confidence":0.9,
        "root_cause":{{"entity":{{"kind":"Deployment","namespace":"shop","name":"api"}},"cause":"memory.leak","evidence":[]}},
        "hypotheses":[],"chain":[],"impact":{{"business_impact":0,"customer_facing":false,"slo_impact":false,
        "cascade_risk":0,"requests_affected":0,"callers":[]}},"actions":[],
        "semantic_group":{{"id":"grp-00000000000000000000000000000000","type":"","intent":""}},
        "freshness":{{"watermark":"2026-01-01T00:00:00Z","gaps":[]}}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn open(path: &Path) -> Result<Store, StoreError> {
    Store::open(&StoreOptions::new(path), StoreMetrics::default(), NOW)
}

/// The database without the store.
fn open_raw(path: &Path) -> sled::Db {
    open_db(&StoreOptions::new(path)).unwrap()
}

/// A directory as format 0 left it: a record is a zero byte and the document, and there is no more.
fn write_format_0(path: &Path, findings: &[Finding]) {
    let db = open_raw(path);
    for finding in findings {
        let record = [&[0][..], &serde_json::to_vec(finding).unwrap()].concat();
        db.insert(keys::record(finding.id, finding.revision), record).unwrap();
    }
    db.flush().unwrap();
}

fn titles(store: &Store, filter: &Filter) -> Vec<String> {
    let size = PageSize { findings: 1000, bytes: usize::MAX };
    let page = store.list(filter, None, size).unwrap();
    page.findings.iter().map(|stored| stored.finding.title.clone()).collect()
}

#[test]
fn format_0_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    write_format_0(dir.path(), &[finding(1, 1), finding(1, 2), finding(2, 1)]);
    let store = open(dir.path()).unwrap();
    for filter in [
        Filter::default(),
        Filter { entity: Some(Entity::parse_query("api")), ..Filter::default() },
        Filter { cause: Some("memory".into()), ..Filter::default() },
        Filter { min_severity: Some(Severity::Error), ..Filter::default() },
    ] {
        assert_eq!(titles(&store, &filter), ["2/1", "1/2"], "{filter:?}");
    }
    assert_eq!(store.get(finding(1, 1).id, Some(1)).unwrap().unwrap().finding, finding(1, 1));
    assert_eq!(store.get(finding(2, 1).id, None).unwrap().unwrap().stored_at, NOW);
    assert_eq!(store.totals().unwrap().records, 3);
    let id = store.id();
    drop(store);
    let store = open(dir.path()).unwrap();
    assert_eq!((store.totals().unwrap().records, store.id()), (3, id), "once");
}

#[test]
fn a_migration_that_was_cut_off_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    write_format_0(dir.path(), &[finding(1, 1), finding(2, 1), finding(3, 1)]);
    let earlier = UnixNanos(NOW.0 - 1);
    {
        // One record is of version 1 already and has an index entry that is wrong by now.
        let db = open_raw(dir.path());
        let json = serde_json::to_vec(&finding(2, 1)).unwrap();
        db.insert(keys::record(finding(2, 1).id, 1), record::encode(earlier, &json)).unwrap();
        db.insert([&keys::by_time()[..], &[9; 24]].concat(), &[]).unwrap();
        db.flush().unwrap();
    }
    let store = open(dir.path()).unwrap();
    assert_eq!(titles(&store, &Filter::default()), ["3/1", "2/1", "1/1"]);
    assert_eq!(store.get(finding(2, 1).id, None).unwrap().unwrap().stored_at, earlier);
    assert_eq!(store.db.scan_prefix(keys::by_time()).count(), 3);
}

#[test]
fn a_newer_format_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = open(dir.path()).unwrap();
        store.db.insert(keys::meta("format"), &7u32.to_be_bytes()).unwrap();
        store.db.flush().unwrap();
    }
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::NewerFormat { found: 7, known: 1, .. }), "{error}");
}

#[test]
fn a_damaged_record_is_told_and_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let put = |finding: Finding| {
        let json = serde_json::to_vec(&finding).unwrap().into();
        store.put(vec![Incoming { finding, json }], NOW).unwrap();
    };
    put(finding(1, 1));
    put(finding(2, 1));
    for damaged in [&b"\x01short"[..], b"", b"\x09{}", b"\x01\0\0\0\0\0\0\0\0{"] {
        store.db.insert(keys::record(finding(2, 1).id, 1), damaged).unwrap();
        store.cache.remove(finding(2, 1).id, 1);
        let error = store.get(finding(2, 1).id, None).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { revision: 1, .. }), "{error}");
        assert_eq!(titles(&store, &Filter::default()), ["1/1"]);
    }
    assert_eq!(store.metrics.unreadable.get(), 4);
    put(finding(2, 2));
    assert_eq!(titles(&store, &Filter::default()), ["2/2", "1/1"], "a new revision is taken");
}

#[test]
fn the_cache_is_bounded_in_bytes_and_never_stale() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { cache_bytes: 20_000, ..StoreOptions::new(dir.path()) };
    let store = Store::open(&options, StoreMetrics::default(), NOW).unwrap();
    let findings = (1..=40).map(|id| finding(id, 1));
    let incoming = findings.map(|finding| {
        let json = serde_json::to_vec(&finding).unwrap().into();
        Incoming { finding, json }
    });
    store.put(incoming.collect(), NOW).unwrap();
    assert!((1..=20_000).contains(&store.cache.bytes()), "{}", store.cache.bytes());
    store.get(finding(40, 1).id, None).unwrap().unwrap();
    assert_eq!((store.metrics.cache_hits.get(), store.metrics.cache_misses.get()), (1, 0));
    store.get(finding(1, 1).id, None).unwrap().unwrap();
    assert_eq!((store.metrics.cache_hits.get(), store.metrics.cache_misses.get()), (1, 1));
    let nothing = Limits { age_max: std::time::Duration::MAX, bytes_max: 0 };
    store.enforce(nothing, NOW).unwrap();
    assert_eq!(store.cache.bytes(), 0);
    assert!(store.get(finding(40, 1).id, Some(1)).unwrap().is_none());
}

#[test]
fn a_poisoned_store_takes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    store.distrust();
    assert!(matches!(store.put(vec![], NOW), Err(StoreError::Poisoned)));
    let limits = Limits { age_max: std::time::Duration::ZERO, bytes_max: 0 };
    assert!(matches!(store.enforce(limits, NOW), Err(StoreError::Poisoned)));
}
