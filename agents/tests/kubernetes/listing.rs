//! Lists of a cluster, whatever its API server does to them. The server is for faults of the protocol alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Response, StatusCode, Uri};
use serde_json::{Value, json};
use tapio_agents::collectors::kubernetes::snapshot::api::{Cluster, Listing};
use tapio_agents::collectors::kubernetes::snapshot::selector::Selector;
use tapio_runtime::clock::SystemClock;
use tapio_schemas::kind::EventKind;

use crate::fixtures::pod;
use crate::lasting::{after, data};
use crate::watching::kubeconfig;

/// What the server does instead of answering.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Status(u16),
    Dropped,
    Slow,
    Stuck,
    Garbage,
}

/// Pages of 500 pods; faults by path, each once.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<Asked>>);

#[derive(Default)]
struct Asked {
    pods: usize,
    /// Faults of answers to come, by plural.
    faults: HashMap<&'static str, Vec<Fault>>,
    /// Paths with their queries, in order.
    paths: Vec<String>,
}

impl Api {
    fn with(pods: usize, faults: &[(&'static str, &[Fault])]) -> Self {
        let faults = faults.iter().map(|(plural, faults)| (*plural, faults.iter().rev().copied().collect()));
        Self(Arc::new(Mutex::new(Asked { pods, faults: faults.collect(), paths: Vec::new() })))
    }

    fn asked(&self, plural: &str) -> Vec<String> {
        let paths = self.0.lock().unwrap().paths.clone();
        paths.into_iter().filter(|path| path.contains(&format!("/{plural}?"))).collect()
    }

    async fn listing(&self, namespace: Option<&str>, selector: Option<&str>) -> Listing {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let dir = tempfile::tempdir().unwrap();
        let file = kubeconfig(dir.path(), address);
        let cluster = Cluster::find(Some(&file), None, SystemClock::shared()).await.unwrap();
        let selector = selector.map(|text| Selector::parse(text).unwrap());
        cluster.snapshot(namespace, selector.as_ref()).await
    }
}

async fn answer(State(api): State<Api>, uri: Uri) -> Response<Body> {
    let plural = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
    let query = uri.query().unwrap_or_default();
    let (fault, pods) = {
        let mut asked = api.0.lock().unwrap();
        asked.paths.push(uri.to_string());
        (asked.faults.get_mut(plural.as_str()).and_then(Vec::pop), asked.pods)
    };
    let from: usize = query
        .split_once("continue=at%20")
        .map_or(0, |(_, at)| at.split('&').next().unwrap().parse().unwrap());
    let limit = match query.split_once("limit=").unwrap().1.split('&').next().unwrap() {
        "0" => usize::MAX,
        limit => limit.parse().unwrap(),
    };
    let elsewhere = json!({"metadata": {"name": "web", "namespace": "bank", "uid": "web"}, "spec": {}});
    let list = match plural.as_str() {
        "pods" => page(pods, from, limit),
        "services" if uri.path().contains("/namespaces/bank/") => {
            json!({"kind": "List", "items": [elsewhere]})
        }
        _ => json!({"kind": "List", "items": []}),
    };
    let text = list.to_string();
    match fault {
        None => Response::new(Body::from(text)),
        Some(Fault::Status(code)) => refused(code),
        Some(Fault::Garbage) => Response::new(Body::from("<html>not what was asked for")),
        Some(fault) => Response::new(halting(text, fault)),
    }
}

fn page(pods: usize, from: usize, limit: usize) -> Value {
    let to = from.saturating_add(limit).min(pods);
    let items: Vec<Value> = (from..to)
        .map(|n| {
            let mut item = pod(1);
            item["metadata"]["name"] = Value::from(format!("p-{n}"));
            item["metadata"]["uid"] = Value::from(format!("u-{n}"));
            item["metadata"]["labels"] = json!({"app": if n == 7 { "odd" } else { "even" }});
            item.as_object_mut().unwrap().remove("kind");
            item
        })
        .collect();
    let next = if to < pods { format!("at {to}") } else { String::new() };
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"continue": next}, "items": items})
}

fn refused(code: u16) -> Response<Body> {
    let status = json!({"kind": "Status", "code": code, "message": format!("refused with {code}")});
    let answer = Response::builder().status(StatusCode::from_u16(code).unwrap()).header("retry-after", "1");
    answer.body(Body::from(status.to_string())).unwrap()
}

/// Half of a body; then the other half late, never, or the end of the connection.
fn halting(text: String, fault: Fault) -> Body {
    let (first, rest) = text.split_at(text.len() / 2);
    let (first, rest) = (Bytes::from(first.to_owned()), Bytes::from(rest.to_owned()));
    Body::from_stream(futures::stream::unfold(0, move |part| {
        let (first, rest) = (first.clone(), rest.clone());
        async move {
            match (part, fault) {
                (0, _) => Some((Ok(first), 1)),
                (1, Fault::Dropped) => Some((Err(std::io::Error::other("dropped")), 2)),
                (1, Fault::Slow) => {
                    // check: allow sleep, the server is slow on purpose
                    tokio::time::sleep(Duration::from_millis(700)).await;
                    Some((Ok(rest), 2))
                }
                (1, _) => futures::future::pending().await,
                _ => None,
            }
        }
    }))
}

#[tokio::test]
async fn large_lists_come_in_pages_and_only_once() {
    let api = Api::with(1203, &[]);
    let listing = api.listing(None, Some("app=odd")).await;
    assert_eq!(listing.missing, []);
    assert_eq!((listing.snapshot.objects(), listing.snapshot.count_of("Pod")), (1203, 1203));
    let paths = api.asked("pods");
    assert_eq!(paths[0], "/api/v1/pods?limit=500");
    assert_eq!(
        paths[1..],
        ["/api/v1/pods?limit=500&continue=at%20500", "/api/v1/pods?limit=500&continue=at%201000"]
    );
    let selected: Vec<_> = listing.snapshot.selected().iter().map(|(_, _, name)| name.as_str()).collect();
    assert!(selected.contains(&"p-7") && !selected.contains(&"p-8"), "{selected:?}");
}

#[tokio::test]
async fn one_namespace_is_asked_for_by_its_path() {
    let api = Api::with(3, &[]);
    api.listing(Some("shop"), None).await;
    assert_eq!(api.asked("pods"), ["/api/v1/namespaces/shop/pods?limit=500"]);
    assert_eq!(api.asked("deployments"), ["/apis/apps/v1/namespaces/shop/deployments?limit=500"]);
    assert_eq!(api.asked("nodes"), ["/api/v1/nodes?limit=500"]);
}

#[tokio::test]
async fn faults_that_pass_lose_and_double_nothing() {
    for fault in [Fault::Status(429), Fault::Status(503), Fault::Dropped, Fault::Slow, Fault::Garbage] {
        let api = Api::with(700, &[("pods", &[fault])]);
        let listing = api.listing(None, None).await;
        assert_eq!((listing.snapshot.count_of("Pod"), listing.missing), (700, vec![]), "{fault:?}");
        assert_eq!(api.asked("pods").len(), if fault == Fault::Slow { 2 } else { 3 }, "{fault:?}");
    }
}

#[tokio::test]
async fn patience_is_as_long_as_the_server_asks_for() {
    let api = Api::with(1, &[("pods", &[Fault::Status(429)])]);
    let started = std::time::Instant::now();
    assert_eq!(api.listing(None, None).await.missing, []);
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up_and_asked_for_again() {
    let api = Api::with(2, &[("pods", &[Fault::Stuck])]);
    let listing = api.listing(None, None).await;
    assert_eq!((listing.snapshot.count_of("Pod"), listing.missing), (2, vec![]));
}

#[tokio::test]
async fn a_forgotten_version_begins_the_list_anew() {
    // The first page comes, the second has expired; then again; then all is asked for at once.
    let gone = [Fault::Status(410); 3];
    for (faults, requests, found) in [(&gone[..1], 3, 700), (&gone[..2], 3, 700), (&gone[..], 3, 0)] {
        let api = Api::with(700, &[("pods", faults)]);
        let listing = api.listing(None, None).await;
        assert_eq!(listing.snapshot.count_of("Pod"), found, "{faults:?}");
        assert_eq!(api.asked("pods").len(), requests, "{faults:?}");
        assert_eq!(listing.missing.len(), usize::from(found == 0));
    }
}

#[tokio::test]
async fn a_forbidden_kind_is_named_with_its_permission_and_the_rest_is_there() {
    let absent: &[Fault] = &[Fault::Status(404)];
    let faults = [("deployments", &[Fault::Status(403)][..]), ("nodes", absent), ("gateways", absent)];
    let api = Api::with(2, &faults);
    let listing = api.listing(None, None).await;
    assert_eq!(listing.snapshot.count_of("Pod"), 2);
    let [missing, absent] = &listing.missing[..] else { panic!("{:?}", listing.missing) };
    assert!(missing.forbidden && !missing.resource.required);
    assert_eq!(
        missing.reason,
        "not allowed: grant list of deployments.apps in all namespaces: refused with 403"
    );
    assert_eq!(absent.reason, "cannot list nodes: the server does not have them");
    assert!(!absent.forbidden);
}

/// What is told to be stuck and why, beside a route from outside to a Service of `shop`, which has none; `bank` has one.
async fn stuck_beside_a_route(faults: &'static [Fault], namespace: Option<&str>) -> Vec<String> {
    let mut snapshot = Api::with(1, &[("services", faults)]).listing(namespace, None).await.snapshot;
    let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
    let route = json!({"kind": "Ingress", "metadata": {"name": "front", "namespace": "shop", "uid": "front",
        "creationTimestamp": "2030-01-01T09:00:00Z"}, "spec": {"defaultBackend": backend}});
    snapshot.take(&route).unwrap();
    let events = snapshot.into_events("c", after(0));
    let stuck = events.iter().filter(|event| event.kind == EventKind::K8sStuck).map(data);
    let mut reasons: Vec<String> = stuck.map(|data| data.reason.to_string()).collect();
    reasons.dedup();
    reasons
}

#[tokio::test]
async fn where_services_were_listed_and_there_are_none_a_route_to_one_leads_nowhere() {
    let none: &[Fault] = &[];
    for namespace in [Some("shop"), None] {
        assert_eq!(stuck_beside_a_route(none, namespace).await, ["BackendAbsent"], "{namespace:?}");
        let forbidden: &[Fault] = &[Fault::Status(403)];
        assert_eq!(stuck_beside_a_route(forbidden, namespace).await, [""; 0], "{namespace:?}");
    }
    // The list of another namespace says nothing.
    assert_eq!(stuck_beside_a_route(none, Some("bank")).await, [""; 0]);
}

#[tokio::test]
async fn a_kind_that_an_old_server_has_in_an_older_version_is_listed_there() {
    let older = [("cronjobs", "batch/v1beta1"), ("endpointslices", "discovery.k8s.io/v1beta1")];
    let faults: [Fault; 1] = [Fault::Status(404)];
    let api = Api::with(2, &older.map(|(plural, _)| (plural, &faults[..])));
    let listing = api.listing(None, None).await;
    assert_eq!(listing.missing, []);
    for (plural, version) in older {
        let asked = api.asked(plural);
        assert_eq!(asked.len(), 2, "{asked:?}");
        assert!(asked[1].contains(&format!("/apis/{version}/{plural}")), "{asked:?}");
    }
}

#[tokio::test]
async fn a_fault_that_stays_is_told_and_ends() {
    let api = Api::with(2, &[("pods", &[Fault::Garbage; 9])]);
    let listing = api.listing(None, None).await;
    let [missing] = &listing.missing[..] else { panic!("{:?}", listing.missing) };
    assert!(missing.resource.required && !missing.forbidden);
    assert!(
        missing.reason.contains("cannot list pods in all namespaces: the answer is no list"),
        "{}",
        missing.reason
    );
    assert_eq!(api.asked("pods").len(), 4);
}
