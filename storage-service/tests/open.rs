//! Findings that are open and not sure enough for the disk, and how far the correlators are.

mod common;

use std::time::Duration;

use common::{PATIENCE, Running, SECOND, finding, json, next};
use tapio_runtime::harness::NatsServer;
use tapio_schemas::finding::Status;
use tapio_schemas::names::{events_subject, status_key};
use tapio_schemas::proto::v1::{ClusterFreshness, GetFindingRequest, ListFindingsRequest, WhyRequest};
use tapio_schemas::{Finding, Score, UnixNanos};

fn all() -> ListFindingsRequest {
    ListFindingsRequest::default()
}

/// An incident of which the cause is not known.
fn unproven(number: u64, revision: u32) -> Finding {
    Finding {
        revision,
        status: Status::NotProvable,
        confidence: Score::clamped(0.3),
        root_cause: None,
        title: format!("unproven {number}/{revision}"),
        ..finding(number)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_and_unproven_is_answered_until_it_ends() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    let past = Finding { status: Status::Recovered, ..finding(9) };
    for finding in [&unproven(1, 1), &finding(2), &past, &unproven(1, 2)] {
        service.publish(finding).await;
        assert_eq!(next(&mut live).await.unwrap().title, finding.title);
    }
    assert_eq!(service.list(all()).await, ["finding 9", "finding 2", "unproven 1/2"]);
    let unproven_only = ListFindingsRequest { status: "not_provable".into(), ..all() };
    assert_eq!(service.list(unproven_only.clone()).await, ["unproven 1/2"]);
    let get = GetFindingRequest { id: unproven(1, 1).id.to_string(), revision: 0 };
    let got = service.client.get_finding(get.clone()).await.unwrap().into_inner().finding.unwrap();
    assert_eq!((got.status.as_str(), got.json.as_bytes()), ("not_provable", &json(&unproven(1, 2))[..]));
    let past = GetFindingRequest { revision: 1, ..get };
    assert!(service.client.get_finding(past).await.is_err(), "only the newest revision is held");
    let mut stored = service.follow(true).await;
    for expected in ["unproven 1/2", "finding 2", "finding 9"] {
        assert_eq!(next(&mut stored).await.unwrap().title, expected);
    }
    assert_eq!(service.handle.store_metrics().stored_count(), 2, "none of it is on disk");

    // It ends, still unproven; the other one becomes sure.
    service.publish(&unproven(5, 1)).await;
    next(&mut live).await.unwrap();
    let ended = Finding { status: Status::Recovered, ..unproven(1, 3) };
    let proven = Finding { revision: 2, title: "proven 5".into(), ..finding(5) };
    for finding in [&ended, &proven] {
        service.publish(finding).await;
        assert_eq!(next(&mut live).await.unwrap().title, finding.title, "the end is told, too");
    }
    assert_eq!(service.list(all()).await, ["finding 9", "proven 5", "finding 2"]);
    assert!(service.metrics.encode().contains("tapio_storage_open_findings 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn why_prefers_what_goes_on_to_what_is_over() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    let over = Finding { status: Status::Recovered, ..finding(7) };
    for finding in [&over, &unproven(3, 1)] {
        service.publish(finding).await;
        next(&mut live).await.unwrap();
    }
    let question = WhyRequest { entity: "api".into() };
    let answer = service.client.why(question).await.unwrap().into_inner();
    assert_eq!(answer.finding.unwrap().title, "unproven 3/1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_knows_what_is_open_from_the_stream() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    let ended = Finding { status: Status::Recovered, ..unproven(2, 2) };
    // The last one was sure once and is on disk with that revision.
    let less_sure = Finding { confidence: Score::clamped(0.5), revision: 2, ..finding(3) };
    for finding in [&unproven(1, 1), &unproven(2, 1), &ended, &finding(3), &less_sure, &unproven(1, 2)] {
        service.publish(finding).await;
        next(&mut live).await.unwrap();
    }
    let before = service.list(all()).await;
    assert_eq!(before, ["finding 3", "unproven 1/2"]);
    drop((live, service.client));
    service.handle.drain().await.unwrap();

    let mut service = Running::start(&nats, dir.path()).await;
    assert_eq!(service.list(all()).await, before, "at once, without a new message");
    let get = GetFindingRequest { id: less_sure.id.to_string(), revision: 0 };
    let got = service.client.get_finding(get).await.unwrap().into_inner().finding.unwrap();
    assert_eq!((got.revision, got.confidence), (2, 0.5), "the newest revision stands, not the surest");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_run_through_disk_and_memory_as_one() {
    const COUNT: u64 = 23;
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    let mut expected = Vec::new();
    for number in 0..COUNT {
        let finding = if number % 3 == 0 { unproven(number, 1) } else { finding(number) };
        service.publish(&finding).await;
        expected.push(next(&mut live).await.unwrap().title);
    }
    expected.reverse();
    for page_size in [1, 2, 5, 22, 23, 24] {
        let (mut titles, mut request) = (Vec::new(), ListFindingsRequest { page_size, ..all() });
        loop {
            let page = service.client.list_findings(request.clone()).await.unwrap().into_inner();
            assert!(page.findings.len() <= page_size as usize);
            titles.extend(page.findings.into_iter().map(|finding| finding.title));
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(titles, expected, "pages of {page_size}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_freshness_of_each_cluster_is_in_the_answers() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let answer = service.client.list_findings(all()).await.unwrap().into_inner();
    assert!(answer.freshness.is_empty() && answer.gaps.is_empty(), "{answer:?}");

    let kv = service.bus.kv().await.unwrap();
    let told = r#"{"watermark":"2026-01-01T00:00:00Z","gaps":["lost 3"],"at":"2026-01-01T00:00:01Z"}"#;
    kv.put("correlator.prod.freshness", told.into()).await.unwrap();
    kv.put("correlator.prod.signals", "{}".into()).await.unwrap();
    kv.put("correlator.broken.freshness", "no".into()).await.unwrap();
    // Up to a second old answers are given again.
    let waiting = async {
        loop {
            let answer = service.client.list_findings(all()).await.unwrap().into_inner();
            if let [prod] = &answer.freshness[..] {
                return prod.clone();
            }
        }
    };
    let prod = tokio::time::timeout(PATIENCE, waiting).await.expect("it is told");
    assert_eq!((prod.cluster.as_str(), &prod.gaps[..]), ("prod", &["lost 3".to_owned()][..]));
    assert_eq!(prod.watermark_unix_nano, 1_767_225_600 * SECOND);
    assert_eq!(prod.at_unix_nano - prod.watermark_unix_nano, SECOND);
    assert!(prod.age_ms > 1_000, "{}", prod.age_ms);
    assert!(prod.silent, "no event came");

    // Whether it can be read is not for the store to say.
    for cluster in ["other", "prod"] {
        service.publish_raw(&events_subject(cluster, 7), None, "an event".into()).await;
    }
    let waiting = async {
        while service.client.list_findings(all()).await.unwrap().into_inner().freshness[0].silent {}
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the event is heard");

    let answer = service.bus.request("tapio.v1.query.findings", "".into(), PATIENCE).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    let watermark: UnixNanos = serde_json::from_value(answer["freshness"][0]["watermark"].clone()).unwrap();
    assert_eq!(watermark.0, prod.watermark_unix_nano, "{answer}");
    assert_eq!(answer["gaps"], serde_json::json!([]));
}

/// Clusters of the answer, until they are these.
async fn clusters_become(service: &mut Running, expected: &[&str]) -> Vec<ClusterFreshness> {
    let mut last = Vec::new();
    let waiting = async {
        loop {
            // Up to a second old answers are given again.
            last = service.client.list_findings(all()).await.unwrap().into_inner().freshness;
            if last.iter().map(|cluster| cluster.cluster.as_str()).eq(expected.iter().copied()) {
                return last.clone();
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{expected:?} do not come"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_no_more_is_forgotten_and_one_that_lost_its_correlator_is_not() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let kv = service.bus.kv().await.unwrap();
    let told = r#"{"watermark":"2026-01-01T00:00:00Z","gaps":[],"at":"2026-01-01T00:00:01Z"}"#;
    // Both have had agents, and the correlators of both say nothing more; only one of them still has its agents.
    for cluster in ["renamed", "stays"] {
        let key = format!("correlator.{cluster}.freshness");
        kv.put_with_ttl(&key, told.into(), Duration::from_secs(2)).await.unwrap();
        kv.put(&status_key("agent", cluster, "n1"), "{}".into()).await.unwrap();
    }
    service.publish_raw(&events_subject("stays", 7), None, "an event".into()).await;
    let both = clusters_become(&mut service, &["renamed", "stays"]).await;
    assert!(both.iter().all(|cluster| cluster.at_unix_nano > 0), "{both:?}");
    let mut left = clusters_become(&mut service, &["stays"]).await;
    // The word of the one may go before that of the other.
    while left[0].at_unix_nano > 0 {
        left = clusters_become(&mut service, &["stays"]).await;
    }
    assert_eq!((left[0].watermark_unix_nano, left[0].silent), (0, false), "{left:?}");
    assert_eq!(kv.get("correlator.renamed.freshness").await.unwrap(), None);
}
