//! The whole service: a real nats-server, a real directory, a real gRPC client.

mod common;

use std::time::Instant;

use common::{PATIENCE, Running, config, finding, json, next, position};
use tapio_runtime::bus::{BusError, OrderedConfig};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::finding::Status;
use tapio_schemas::names::{HEADER_ORIGIN, HEADER_REASON, STREAM_DEADLETTER, STREAM_INSIGHTS};
use tapio_schemas::proto::v1::{GetFindingRequest, ListFindingsRequest, SubscribeRequest, WhyRequest};
use tapio_schemas::{Entity, Finding, Score, Severity};
use tapio_storage::{StorageError, StorageParts, StorageService};
use tonic::Code;

fn all() -> ListFindingsRequest {
    ListFindingsRequest::default()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_is_stored_once_and_the_rest_is_accounted_for() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;

    // Over and unsure: neither on disk nor open.
    let unsure = Finding { confidence: Score::clamped(0.7), status: Status::Recovered, ..finding(1) };
    let sure = finding(2);
    service.publish(&unsure).await;
    service.publish_raw(&sure.subject(), None, "not json\n".into()).await;
    let foreign = Finding { schema: "tapio.finding/v9".into(), ..finding(3) };
    service.publish_raw(&sure.subject(), None, json(&foreign)).await;
    // Two messages of one revision, as after a lost acknowledgement beyond the duplicate window.
    service.publish_raw(&sure.subject(), None, json(&sure)).await;
    service.publish_raw(&sure.subject(), None, json(&sure)).await;
    let last = finding(4);
    service.publish(&last).await;

    assert_eq!(next(&mut live).await.unwrap().title, "finding 2");
    assert_eq!(next(&mut live).await.unwrap().title, "finding 4");
    assert_eq!(service.list(all()).await, ["finding 4", "finding 2"]);

    let counts = service.handle.store_metrics();
    let dropped = ["low_confidence", "malformed", "duplicate"].map(|reason| counts.not_stored_count(reason));
    assert_eq!((counts.stored_count(), dropped), (2, [1, 2, 1]), "six offered");
    assert!(service.metrics.encode().contains("tapio_storage_findings_stored_total 2"));

    let mut letters = service.bus.ordered_consumer(OrderedConfig::new(STREAM_DEADLETTER)).await.unwrap();
    let letter = letters.next().await.unwrap();
    assert_eq!(letter.subject, "tapio.v1.deadletter.storage");
    assert_eq!(&letter.payload[..], b"not json\n");
    assert!(letter.headers.get(HEADER_REASON).unwrap().contains("line 1"), "{:?}", letter.headers);
    assert_eq!(letter.headers.get(HEADER_ORIGIN), Some(sure.subject().as_str()));
    let letter = letters.next().await.unwrap();
    assert!(letter.headers.get(HEADER_REASON).unwrap().contains("tapio.finding/v9"));
    assert_eq!(letter.pending, 0, "only these two");
    let report = service.handle.drain().await.unwrap();
    assert!(report.abandoned.is_empty(), "{report:?}");
    let position = position(&service.bus).await;
    assert_eq!((&position["num_pending"], &position["num_ack_pending"]), (&0.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_many_wait_is_not_asked_for_each_batch() {
    const BATCHES: u64 = 60;
    // It asks once in so many seconds.
    const PAUSE: f64 = 2.0;
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    let begun = Instant::now();
    let subject = |what: &str| format!("$JS.API.CONSUMER.INFO.{STREAM_INSIGHTS}.{what}");
    let mut questions = service.bus.subscribe(&subject("*")).await.unwrap();
    for number in 0..BATCHES {
        service.publish(&finding(number)).await;
        // Stored, so that the next one is in another batch.
        assert_eq!(next(&mut live).await.unwrap().title, format!("finding {number}"));
    }
    let first = tokio::time::timeout(PATIENCE, questions.next()).await;
    assert!(first.expect("it asks now and then").is_some(), "the bus is open");
    let mut asked = 1;
    // Over the same connection, so that it comes after what was asked.
    service.bus.tell(&subject("end"), "".into()).unwrap();
    while questions.next().await.expect("the bus is open").subject != subject("end") {
        asked += 1;
    }
    let seconds = begun.elapsed().as_secs_f64();
    // The first one may come at once.
    let most = 1.0 + seconds / PAUSE;
    assert!(f64::from(asked) <= most, "{asked} questions in {seconds:.1} s, for {BATCHES} batches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_the_findings_and_the_position() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    for number in 0..10 {
        service.publish(&finding(number)).await;
    }
    for _ in 0..10 {
        next(&mut live).await.unwrap();
    }
    drop((live, service.client));
    service.handle.drain().await.unwrap();

    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    assert_eq!(service.list(all()).await.len(), 10);
    let revised = Finding { revision: 2, title: "revised".into(), ..finding(3) };
    service.publish(&revised).await;
    assert_eq!(next(&mut live).await.unwrap().title, "revised");
    let counts = service.handle.store_metrics();
    assert_eq!(counts.not_stored_count("duplicate"), 0, "nothing acknowledged came again");
    assert_eq!(counts.stored_count(), 1);
    assert_eq!(service.list(all()).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_and_comes_back_is_found_again() {
    let mut nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    service.publish(&finding(1)).await;
    next(&mut live).await.unwrap();
    tokio::task::block_in_place(|| {
        nats.kill();
        nats.restart().unwrap();
    });
    service.publish(&finding(2)).await;
    assert_eq!(next(&mut live).await.unwrap().title, "finding 2");
    assert_eq!(service.list(all()).await, ["finding 2", "finding 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_lost_is_rebuilt_from_the_stream() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, &dir.path().join("first")).await;
    let mut live = service.follow(false).await;
    service.publish(&finding(1)).await;
    next(&mut live).await.unwrap();
    drop(live);
    service.handle.drain().await.unwrap();

    let mut service = Running::start(&nats, &dir.path().join("second")).await;
    let mut live = service.follow(true).await;
    assert_eq!(next(&mut live).await.unwrap().title, "finding 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_or_refused_with_the_right_code() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    let leak = finding(1);
    let mut caller = Finding { severity: Severity::Warning, title: "web fails".into(), ..finding(2) };
    let root = caller.root_cause.as_mut().unwrap();
    root.entity = Entity::namespaced("Deployment", "shop", "web");
    root.cause = "dependency.refused".into();
    for finding in [&leak, &caller] {
        service.publish(finding).await;
        next(&mut live).await.unwrap();
    }

    let client = &mut service.client;
    let why = |entity: &str| WhyRequest { entity: entity.to_owned() };
    let answer = client.why(why("shop/deployment/api")).await.unwrap().into_inner().finding.unwrap();
    assert_eq!(answer.title, "finding 1", "the root cause goes before the newer mention");
    assert_eq!(answer.json.as_bytes(), &json(&leak)[..], "the document as published");
    assert_eq!((answer.cause.as_str(), answer.entity_name.as_str()), ("memory.leak", "api"));
    let answer = client.why(why("pod/api-1")).await;
    assert_eq!(answer.unwrap_err().code(), Code::NotFound, "it is a container");
    let answer = client.why(why("api-1")).await.unwrap().into_inner().finding.unwrap();
    assert_eq!(answer.title, "web fails", "the newest that has it in its chain");
    assert_eq!(client.why(why("nobody")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.why(why("")).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(client.why(why(&"x".repeat(600))).await.unwrap_err().code(), Code::InvalidArgument);

    let get = |id: String, revision| GetFindingRequest { id, revision };
    let answer = client.get_finding(get(leak.id.to_string(), 0)).await.unwrap().into_inner();
    assert_eq!(answer.finding.unwrap().revision, 1);
    let refused = client.get_finding(get(leak.id.to_string(), 9)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("revision 9"), "{refused}");
    assert_eq!(client.get_finding(get("x".into(), 0)).await.unwrap_err().code(), Code::InvalidArgument);

    let too_many = ListFindingsRequest { page_size: 1001, ..all() };
    assert_eq!(client.list_findings(too_many).await.unwrap_err().code(), Code::InvalidArgument);
    let memory = ListFindingsRequest { cause: "memory".into(), ..all() };
    assert_eq!(service.list(memory).await, ["finding 1"]);
    let critical = ListFindingsRequest { min_severity: "critical".into(), ..all() };
    assert_eq!(service.list(critical).await, ["finding 1"]);
    let one = ListFindingsRequest { page_size: 1, ..all() };
    let page = service.client.list_findings(one.clone()).await.unwrap().into_inner();
    let rest = ListFindingsRequest { page_token: page.next_page_token, ..one };
    let page = service.client.list_findings(rest).await.unwrap().into_inner();
    assert_eq!((page.findings[0].title.as_str(), page.next_page_token.as_str()), ("finding 1", ""));
    let big = ListFindingsRequest { entity: "x".repeat(100 << 10), ..all() };
    assert_eq!(service.client.list_findings(big).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_and_health_answer() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(&nats, dir.path()).await;
    let url = format!("http://{}", service.handle.grpc_addr());
    let channel = tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();

    let mut health = HealthClient::new(channel.clone());
    for name in ["", "tapio.v1.CorrelationService"] {
        let answer = health.check(HealthCheckRequest { service: name.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "{name}");
    }

    let mut reflection = ServerReflectionClient::new(channel);
    let question = |message_request| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
        futures::stream::iter([request])
    };
    let asked = reflection.server_reflection_info(question(MessageRequest::ListServices(String::new())));
    let answer = asked.await.unwrap().into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(services)) = answer.message_response else {
        panic!("{answer:?}")
    };
    let names: Vec<_> = services.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"tapio.v1.CorrelationService"), "{names:?}");
    assert!(names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let symbol = MessageRequest::FileContainingSymbol("tapio.v1.CorrelationService".into());
    let answer = reflection.server_reflection_info(question(symbol)).await.unwrap();
    let answer = answer.into_inner().message().await.unwrap().unwrap();
    assert!(matches!(answer.message_response, Some(MessageResponse::FileDescriptorResponse(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_is_dropped_and_told_so() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    // One that does not read, on a connection of its own, and one that does.
    let mut other = common::connect(service.handle.grpc_addr()).await;
    let mut slow = other.subscribe(SubscribeRequest::default()).await.unwrap().into_inner();
    let mut live = service.follow(false).await;
    // More than the windows of the connection and the backlog hold.
    let story = "x".repeat(8 << 10);
    for round in 0..10 {
        for number in 0..100 {
            service.publish(&Finding { story: story.clone(), ..finding(round * 100 + number) }).await;
        }
        for _ in 0..100 {
            next(&mut live).await.unwrap();
        }
    }
    let told = loop {
        if let Err(status) = next(&mut slow).await {
            break status;
        }
    };
    assert_eq!(told.code(), Code::ResourceExhausted);
    assert!(told.message().contains("too slow and missed"), "{told}");
    assert!(service.metrics.encode().contains("tapio_storage_subscribers_dropped_total 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribers_get_what_is_stored_then_what_comes_and_an_end() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = tapio_storage::StorageConfig { subscribers: 2, ..config(dir.path()) };
    let mut service = Running::start_with(&nats, config).await;
    let mut live = service.follow(false).await;
    for number in 0..3 {
        service.publish(&finding(number)).await;
        next(&mut live).await.unwrap();
    }
    let mut stored = service.follow(true).await;
    let refused = service.client.subscribe(SubscribeRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "two places");
    service.publish(&finding(7)).await;
    for expected in ["finding 0", "finding 1", "finding 2", "finding 7"] {
        assert_eq!(next(&mut stored).await.unwrap().title, expected);
    }
    next(&mut live).await.unwrap();
    let (report, end) = tokio::join!(service.handle.drain(), next(&mut stored));
    assert_eq!(end.unwrap_err().code(), Code::Unavailable);
    assert!(report.unwrap().abandoned.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_questions_are_answered_over_nats() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut service = Running::start(&nats, dir.path()).await;
    let mut live = service.follow(false).await;
    for number in 0..3 {
        service.publish(&finding(number)).await;
        next(&mut live).await.unwrap();
    }
    let ask = |subject: &'static str, question: &'static str| {
        service.bus.request(subject, question.into(), PATIENCE)
    };
    let answer = ask("tapio.v1.query.findings", r#"{"cause":"memory.leak","page_size":2}"#).await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["findings"].as_array().unwrap().len(), 2);
    assert_eq!(answer["findings"][0]["title"], "finding 2");
    assert_eq!(answer["next_page_token"].as_str().unwrap().len(), 64);
    let answer = ask("tapio.v1.query.findings", "").await.unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!((answer["findings"].as_array().unwrap().len(), &answer["next_page_token"]), (3, &"".into()));
    let answer = ask("tapio.v1.query.why", r#"{"entity":"deployment/api"}"#).await.unwrap();
    assert_eq!(answer, json(&finding(2)));
    let refusals = [
        ("tapio.v1.query.why", r#"{"entity":"nobody"}"#, 404),
        ("tapio.v1.query.why", "{}", 400),
        ("tapio.v1.query.findings", r#"{"colour":"red"}"#, 400),
    ];
    for (subject, question, expected) in refusals {
        match ask(subject, question).await {
            Err(BusError::Service { code, .. }) => assert_eq!(code, expected, "{question}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_or_store_is_named() {
    let nats = NatsServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let service = Running::start(&nats, dir.path()).await;
    let again = |config| {
        let clock = SystemClock::shared();
        let health = Health::new(clock.clone());
        let metrics = Metrics::new();
        StorageService::start(config, StorageParts { bus: service.bus.clone(), clock, health, metrics })
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let taken = service.handle.grpc_addr().to_string();
    let mut config = config(elsewhere.path());
    config.listen = taken.clone();
    let error = again(config.clone()).await.err().unwrap();
    assert!(matches!(&error, StorageError::Listen { listen, .. } if *listen == taken), "{error}");
    config.listen = "127.0.0.1:0".into();
    config.path = dir.path().to_owned();
    let error = again(config).await.err().unwrap();
    assert!(error.to_string().contains("is another process using it"), "{error}");
}
