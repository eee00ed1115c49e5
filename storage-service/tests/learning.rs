//! Feedback, priors and similar incidents: a real nats-server, a real directory, a real gRPC client.

mod common;

use std::io::BufReader;

use common::{PATIENCE, Running, finding, incoming, link, next};
use tapio_runtime::bus::Bus;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::finding::{Hypothesis, Prediction, RootCause, Status};
use tapio_schemas::learning::{Feedback, Judgement, PriorHistory};
use tapio_schemas::names::priors_key;
use tapio_schemas::proto::v1::{
    GetFindingRequest, GiveFeedbackRequest, ListCausesRequest, ListFindingsRequest, ResetCausesRequest,
    SimilarRequest, WhyRequest,
};
use tapio_schemas::{Entity, Finding, Score, UnixNanos};
use tapio_storage::store::{Store, StoreMetrics, StoreOptions};
use tonic::Code;

/// Names `cpu.throttling` and gives `memory.leak` almost as much.
fn look_alike(number: u64) -> Finding {
    let base = finding(number);
    let seat = Entity::namespaced("Deployment", "shop", "api");
    let hypothesis = |cause: &str, probability| Hypothesis {
        entity: seat.clone(),
        cause: cause.into(),
        probability: Score::clamped(probability),
        explains: vec![],
        missing: vec![],
        refuted_by: vec![],
    };
    Finding {
        root_cause: Some(RootCause {
            entity: seat.clone(),
            cause: "cpu.throttling".into(),
            evidence: vec![],
        }),
        hypotheses: vec![hypothesis("cpu.throttling", 0.75), hypothesis("memory.leak", 0.4)],
        ..base
    }
}

fn wrong(finding: &Finding) -> GiveFeedbackRequest {
    GiveFeedbackRequest {
        id: finding.id.to_string(),
        judgement: "wrong".into(),
        cause: "memory.leak".into(),
        entity: "shop/deployment/db".into(),
        fix: "a larger limit".into(),
        ..GiveFeedbackRequest::default()
    }
}

/// The priors of the test's cluster once they are as wanted.
async fn priors(bus: &Bus, wanted: impl Fn(&PriorHistory) -> bool) -> PriorHistory {
    let kv = bus.kv().await.unwrap();
    let reading = async {
        loop {
            let entry = kv.get(&priors_key("prod")).await.unwrap();
            let read = entry.and_then(|entry| serde_json::from_slice(&entry.value).ok());
            if let Some(history) = read.filter(|history| wanted(history)) {
                return history;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the priors are told")
}

const LATE: UnixNanos = UnixNanos(u64::MAX);

#[tokio::test(flavor = "multi_thread")]
async fn feedback_moves_the_priors_within_bounds_and_a_reset_brings_them_back() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    for number in 1..=2 {
        service.publish(&look_alike(number)).await;
        next(&mut live).await.unwrap();
        let kept = service.client.give_feedback(wrong(&look_alike(number))).await.unwrap().into_inner();
        let kept: Feedback = serde_json::from_str(&kept.feedback_json).unwrap();
        assert_eq!((kept.judgement, kept.named.unwrap().probability.get()), (Judgement::Wrong, 0.75));
        assert_eq!(kept.actual.unwrap().probability.get(), 0.4);
    }
    let moved = priors(&service.bus, |h| h.factor("cpu.throttling", LATE) < 0.4).await;
    assert!(moved.factor("memory.leak", LATE) > 1.5, "{moved:?}");
    assert_eq!(moved.factor("cpu.throttling", UnixNanos(0)), 1.0, "what was decided stays as it was");

    let all = ListCausesRequest::default();
    let causes = service.client.list_causes(all.clone()).await.unwrap().into_inner().causes;
    let named: Vec<_> = causes.iter().map(|c| (c.cause.as_str(), c.right, c.wrong)).collect();
    assert_eq!(named, [("cpu.throttling", 0.0, 2.0), ("memory.leak", 2.0, 0.0)]);
    assert!(causes.iter().all(|c| c.low < c.mean && c.mean < c.high && (0.25..=4.0).contains(&c.factor)));

    // Another word on the same finding replaces the first one.
    let right = GiveFeedbackRequest {
        id: look_alike(1).id.to_string(),
        judgement: "right".into(),
        ..GiveFeedbackRequest::default()
    };
    service.client.give_feedback(right).await.unwrap();
    let causes = service.client.list_causes(all.clone()).await.unwrap().into_inner().causes;
    assert_eq!((causes[0].right, causes[0].wrong), (1.0, 1.0));

    let reset = ResetCausesRequest { cause: "cpu.throttling".into(), ..ResetCausesRequest::default() };
    assert_eq!(service.client.reset_causes(reset).await.unwrap().into_inner().causes, 1);
    let back = priors(&service.bus, |h| h.factor("cpu.throttling", LATE) == 1.0).await;
    assert!(back.factor("memory.leak", LATE) > 1.2, "the other one stays: {back:?}");
    let reset = ResetCausesRequest::default();
    assert_eq!(service.client.reset_causes(reset).await.unwrap().into_inner().causes, 1);
    priors(&service.bus, |h| h.versions.last().is_some_and(|v| v.factors.is_empty())).await;
    assert!(service.client.list_causes(all).await.unwrap().into_inner().causes.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn feedback_is_told_with_its_finding_and_outlives_a_restart() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    service.publish(&look_alike(1)).await;
    next(&mut live).await.unwrap();
    service.client.give_feedback(wrong(&look_alike(1))).await.unwrap();
    drop((live, service.client));
    service.handle.drain().await.unwrap();

    let mut service = Running::start(&nats, dir.path()).await;
    let why = WhyRequest { entity: "shop/deployment/api".into() };
    let said = service.client.why(why).await.unwrap().into_inner().feedback_json;
    let said: Feedback = serde_json::from_str(&said).unwrap();
    assert_eq!((said.fix.as_str(), said.finding), ("a larger limit", look_alike(1).id));
    let get = GetFindingRequest { id: look_alike(1).id.to_string(), revision: 0 };
    assert!(!service.client.get_finding(get).await.unwrap().into_inner().feedback_json.is_empty());

    let refused = async |request: GiveFeedbackRequest| {
        let mut client = service.client.clone();
        client.give_feedback(request).await.unwrap_err().code()
    };
    let unknown = GiveFeedbackRequest { id: finding(9).id.to_string(), ..wrong(&look_alike(1)) };
    assert_eq!(refused(unknown).await, Code::NotFound);
    let words =
        [("perhaps", "", ""), ("right", "memory.leak", ""), ("wrong", "leak", ""), ("wrong", "", "pod/")];
    for (judgement, cause, entity) in words {
        let request = GiveFeedbackRequest {
            judgement: judgement.into(),
            cause: cause.into(),
            entity: entity.into(),
            ..wrong(&look_alike(1))
        };
        assert_eq!(refused(request).await, Code::InvalidArgument, "{judgement} {cause} {entity}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scored_prediction_is_an_outcome_of_its_cause_once() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    for (revision, outcome) in [(1, "pending"), (2, "hit"), (3, "hit")] {
        let at = finding(1).updated_at;
        let prediction = Prediction {
            entity: None,
            scenario: "oom_kill".into(),
            probability: Score::clamped(0.9),
            at,
            interval: (at, at.plus(1)),
            outcome: Some(outcome.into()),
        };
        service.publish(&Finding { revision, prediction: Some(prediction), ..finding(1) }).await;
        next(&mut live).await.unwrap();
    }
    service.publish(&finding(2)).await;
    next(&mut live).await.unwrap();
    let request = ListFindingsRequest { with_prediction: true, ..ListFindingsRequest::default() };
    assert_eq!(service.list(request).await, ["finding 1"], "the other one foretells nothing");
    let causes = service.client.list_causes(ListCausesRequest::default()).await.unwrap().into_inner().causes;
    assert_eq!(causes.len(), 1);
    assert_eq!((causes[0].cause.as_str(), causes[0].right, causes[0].wrong), ("memory.leak", 0.5, 0.0));
}

/// The same trouble of another thing with other names.
fn elsewhere(number: u64) -> Finding {
    let web = Entity::namespaced("Deployment", "market", "web");
    let base = finding(number);
    let at = base.first_bad_at;
    Finding {
        status: Status::Recovered,
        updated_at: at.plus(90_000_000_000),
        title: "web-7 leaks".into(),
        story: "web leaks memory".into(),
        root_cause: Some(RootCause { entity: web.clone(), cause: "memory.leak".into(), evidence: vec![] }),
        chain: vec![link(at, web), link(at, Entity::namespaced("Container", "market", "web-7/app"))],
        ..base
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_trouble_elsewhere_is_found_with_what_was_said_of_it() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    let mut other = Finding { story: "cpu is short".into(), ..look_alike(2) };
    other.chain.iter_mut().for_each(|link| link.signal = "cpu.throttled".into());
    let later = elsewhere(50);
    for finding in [&elsewhere(1), &other, &finding(3), &later] {
        service.publish(finding).await;
        next(&mut live).await.unwrap();
    }
    let right = GiveFeedbackRequest {
        id: elsewhere(1).id.to_string(),
        judgement: "right".into(),
        fix: "rolled back".into(),
        ..GiveFeedbackRequest::default()
    };
    service.client.give_feedback(right).await.unwrap();
    let request = SimilarRequest { id: finding(3).id.to_string(), limit: 0 };
    let similar = service.client.similar(request).await.unwrap().into_inner().findings;
    let first = &similar[0];
    assert_eq!(
        first.finding.as_ref().unwrap().id,
        elsewhere(1).id.to_string(),
        "not itself, not a later one"
    );
    assert!(first.similarity > 0.9, "{}", first.similarity);
    assert!(first.feedback_json.contains("rolled back"));
    assert!(similar[1..].iter().all(|s| s.similarity < first.similarity - 0.1));
    let many = SimilarRequest { id: finding(3).id.to_string(), limit: 21 };
    assert_eq!(service.client.similar(many).await.unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn an_export_takes_the_feedback_along() {
    let open = |dir: &tempfile::TempDir| {
        Store::open(&StoreOptions::new(dir.path()), StoreMetrics::default(), UnixNanos(1)).unwrap()
    };
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(&from);
    store.put(vec![incoming(finding(1))], UnixNanos(1)).unwrap();
    let said = Feedback {
        schema: "tapio.feedback/v1".into(),
        finding: finding(1).id,
        revision: 1,
        cluster: "prod".into(),
        at: UnixNanos(5),
        judgement: Judgement::Right,
        named: None,
        actual: None,
        fix: String::new(),
        note: "ünsure".into(),
    };
    store.put_feedback(&said).unwrap();
    let mut lines = Vec::new();
    assert_eq!(store.export(&mut lines).unwrap(), 1);
    let store = open(&to);
    let import = |lines: &[u8]| store.import(&mut BufReader::new(lines), UnixNanos(9)).unwrap();
    let report = import(&lines);
    assert_eq!((report.stored, report.feedback), (1, 1));
    assert_eq!(store.feedback(finding(1).id).unwrap(), Some(said));
    assert_eq!(import(&lines).feedback, 0, "what is there stays");
}
