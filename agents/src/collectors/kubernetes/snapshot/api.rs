//! Lists of an API server: all kinds at once, in pages, read-only. What cannot be had is named, with the permission
//! that is missing; the rest is judged all the same.

use std::path::Path;
use std::time::Duration;

use axum::http::{Request, Response, StatusCode, header};
use bytes::Bytes;
use futures::StreamExt;
use kube::Client;
use kube::client::Body;
use tapio_runtime::clock::SharedClock;

use super::Snapshot;
use super::decode::{self, Fallback};
use super::resources::{RESOURCES, Resource};
use super::selector::Selector;
use crate::collectors::kubernetes::collector::{self, Unavailable};
use crate::collectors::kubernetes::config::KubernetesConfig;
use crate::collectors::kubernetes::objects::Objects;

/// Objects of a page.
pub const PAGE_OBJECTS: usize = 500;
/// Kinds that are listed at the same time.
const PARALLEL_MAX: usize = 6;
/// Pages of a list; a server that never ends is left there.
const PAGES_MAX: usize = 1000;
/// Bytes of a page.
const PAGE_BYTES_MAX: usize = 128 << 20;
/// Requests for one page: the first and those after errors that may pass.
const ATTEMPTS_MAX: u32 = 4;
/// A page has to come within this time, head and body.
const PAGE_TIME_MAX: Duration = Duration::from_secs(10);
/// A server may ask for this much patience; nobody who waits for an answer has more.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);
/// Before the second request; twice as long before each further one.
const RETRY_DELAY: Duration = Duration::from_millis(200);
/// Letters of what a server says in an error.
const ERROR_CHARS_MAX: usize = 200;
/// How often a list begins anew because the server has forgotten its version.
const RESTARTS_MAX: u32 = 2;

/// An API server and who asks it.
pub struct Cluster {
    client: Client,
    clock: SharedClock,
    address: String,
    context: Option<String>,
    namespace: String,
}

/// What the lists say.
#[derive(Debug)]
pub struct Listing {
    /// What could be had.
    pub snapshot: Snapshot,
    /// What could not, in the order of [`RESOURCES`].
    pub missing: Vec<Missing>,
}

/// A kind that could not be listed, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Kind.
    pub resource: Resource,
    /// Whether a permission is missing.
    pub forbidden: bool,
    /// What happened and what to do, in words.
    pub reason: String,
}

/// Why a page did not come.
enum Failure {
    /// The server does not have this kind.
    NotServed,
    Forbidden(String),
    /// The version of the list is forgotten.
    Expired,
    Other(String),
}

/// Where a page begins and how long it is; zero for all of the list.
struct Page {
    token: String,
    limit: usize,
}

impl Cluster {
    /// Finds the cluster of the kubeconfig, or the one this pod runs in. Does not talk to it.
    ///
    /// # Errors
    /// [`Unavailable`], with the reason.
    pub async fn find(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        clock: SharedClock,
    ) -> Result<Self, Unavailable> {
        let config = KubernetesConfig {
            kubeconfig: kubeconfig.map(Path::to_path_buf),
            context: context.map(str::to_owned),
            ..KubernetesConfig::default()
        };
        let mut found = collector::find(&config).await?;
        // Waits are bounded here, by what somebody who waits for an answer has of patience.
        found.default_retry = false;
        let (address, namespace) = (found.cluster_url.to_string(), found.default_namespace.clone());
        let context = config.context.clone().or_else(|| collector::current_context(&config));
        let client = Client::try_from(found).map_err(|error| collector::unusable(&config, error.into()))?;
        Ok(Self { client, clock, address, context, namespace })
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The context of the kubeconfig by which it was found; nothing in a pod.
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Its single objects, for who was asked to change one.
    pub fn objects(&self) -> Objects {
        Objects::new(self.client.clone())
    }

    /// Who asks it, for what else it answers.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// The namespace of the context.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Lists everything, of one namespace or of all; kinds that are in no namespace are listed in both cases.
    pub async fn snapshot(&self, namespace: Option<&str>, selector: Option<&Selector>) -> Listing {
        let lists = RESOURCES.iter().map(|resource| self.list(resource, namespace, selector));
        let lists: Vec<_> = futures::stream::iter(lists).buffered(PARALLEL_MAX).collect().await;
        let mut listing = Listing { snapshot: Snapshot::new(None), missing: Vec::new() };
        for (snapshot, missing) in lists {
            listing.snapshot.merge(snapshot);
            listing.missing.extend(missing);
        }
        listing
    }

    /// One kind: what came of it, and what did not.
    async fn list(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        selector: Option<&Selector>,
    ) -> (Snapshot, Option<Missing>) {
        let mut snapshot = Snapshot::new(selector.cloned());
        let mut page = Page { token: String::new(), limit: PAGE_OBJECTS };
        let (mut restarts, mut pages) = (0, 0);
        let mut resource = *resource;
        loop {
            pages += 1;
            let failure = match self.page(&resource, namespace, &page, &mut snapshot).await {
                Ok(token) if token.is_empty() => {
                    snapshot.was_listed(resource.kind, namespace.filter(|_| resource.namespaced));
                    return (snapshot, None);
                }
                Ok(_) if pages >= PAGES_MAX => Failure::Other(format!("it has more than {PAGES_MAX} pages")),
                Ok(token) => {
                    page.token = token;
                    continue;
                }
                Err(Failure::Expired) if restarts < RESTARTS_MAX => {
                    restarts += 1;
                    snapshot = Snapshot::new(selector.cloned());
                    // Pages that expire again and again come too slowly: the second time all is asked for at once.
                    let limit = if restarts == RESTARTS_MAX { 0 } else { PAGE_OBJECTS };
                    page = Page { token: String::new(), limit };
                    continue;
                }
                Err(Failure::NotServed) if resource.older.is_some() => {
                    resource = resource.in_older().unwrap_or(resource);
                    continue;
                }
                Err(failure) => failure,
            };
            return (snapshot, missing(&resource, namespace, failure));
        }
    }

    /// Takes the objects of a page; returns where the next one begins. A page counts as a whole or not at all.
    async fn page(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        page: &Page,
        into: &mut Snapshot,
    ) -> Result<String, Failure> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let asked = tokio::time::timeout(PAGE_TIME_MAX, self.ask(resource, namespace, page)).await;
            let (reason, delay) = match asked {
                Ok(Ok(body)) => match objects(resource, &body) {
                    Ok((objects, token)) => {
                        objects.into_iter().for_each(|object| into.absorb(object));
                        return Ok(token);
                    }
                    Err(error) => (format!("the answer is no list: {error}"), None),
                },
                Ok(Err(Refusal::Final(failure))) => return Err(failure),
                Ok(Err(Refusal::Passing { reason, after })) => (reason, after),
                Err(_) => (format!("no whole answer within {} s", PAGE_TIME_MAX.as_secs()), None),
            };
            if attempt >= ATTEMPTS_MAX {
                return Err(Failure::Other(format!("{reason} (asked {attempt} times)")));
            }
            let delay = delay.unwrap_or(RETRY_DELAY * 2_u32.pow(attempt - 1));
            self.clock.sleep(delay.min(RETRY_AFTER_MAX)).await;
        }
    }

    async fn ask(&self, resource: &Resource, namespace: Option<&str>, page: &Page) -> Result<Bytes, Refusal> {
        let mut uri = format!("{}?limit={}", resource.path(namespace), page.limit);
        if !page.token.is_empty() {
            uri.push_str("&continue=");
            uri.push_str(&escaped(&page.token));
        }
        let accept = if resource.metadata_only {
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
        } else {
            "application/json"
        };
        let request = Request::get(uri).header(header::ACCEPT, accept).body(Body::empty());
        let request = request.map_err(|error| Refusal::Final(Failure::Other(error.to_string())))?;
        let answer = self.client.send(request).await.map_err(|error| Refusal::passing(chain(&error)))?;
        let (head, body) = answer.into_parts();
        let body = axum::body::to_bytes(axum::body::Body::new(body), PAGE_BYTES_MAX).await;
        let body =
            body.map_err(|error| Refusal::passing(format!("the answer broke off: {}", chain(&error))))?;
        if head.status == StatusCode::OK { Ok(body) } else { Err(refusal(&Response::from_parts(head, body))) }
    }
}

/// Why a request was not answered with a list.
enum Refusal {
    Final(Failure),
    Passing { reason: String, after: Option<Duration> },
}

impl Refusal {
    fn passing(reason: String) -> Self {
        Self::Passing { reason, after: None }
    }
}

fn refusal(answer: &Response<Bytes>) -> Refusal {
    let said: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let message: String =
        said["message"].as_str().unwrap_or_default().chars().take(ERROR_CHARS_MAX).collect();
    let status = answer.status();
    let reason = format!("{status}{}{message}", if message.is_empty() { "" } else { ": " });
    match status {
        StatusCode::NOT_FOUND => Refusal::Final(Failure::NotServed),
        StatusCode::FORBIDDEN => Refusal::Final(Failure::Forbidden(message)),
        StatusCode::GONE => Refusal::Final(Failure::Expired),
        StatusCode::TOO_MANY_REQUESTS => Refusal::Passing { reason, after: retry_after(answer) },
        status if status.is_server_error() => Refusal::Passing { reason, after: retry_after(answer) },
        StatusCode::UNAUTHORIZED => Refusal::Final(Failure::Other(format!(
            "{reason}: the kubeconfig's credentials are not accepted, renew them"
        ))),
        _ => Refusal::Final(Failure::Other(reason)),
    }
}

/// Whole seconds; the other form, a date, is not used by API servers.
pub(in crate::collectors::kubernetes) fn retry_after(answer: &Response<Bytes>) -> Option<Duration> {
    let seconds = answer.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The page by itself, so that half a page that is asked for again is not taken twice.
fn objects(resource: &Resource, body: &[u8]) -> serde_json::Result<(Vec<super::Part>, String)> {
    let mut parts = Vec::new();
    let fallback = Fallback { kind: resource.kind, api_version: resource.api_version };
    let head = decode::slice(body, fallback, &mut |object| parts.extend(super::Part::of(&object)))?;
    Ok((parts, head.continue_token))
}

fn missing(resource: &Resource, namespace: Option<&str>, failure: Failure) -> Option<Missing> {
    let name = resource.name();
    let place = match namespace.filter(|_| resource.namespaced) {
        Some(namespace) => format!("in namespace {namespace}"),
        None if resource.namespaced => "in all namespaces".to_owned(),
        None => "of the cluster".to_owned(),
    };
    let (forbidden, reason) = match failure {
        Failure::NotServed if !resource.is_built_in() => return None,
        Failure::NotServed => (false, format!("cannot list {name}: the server does not have them")),
        Failure::Forbidden(said) => (true, format!("not allowed: grant list of {name} {place}: {said}")),
        Failure::Expired => {
            (false, format!("cannot list {name}: the server forgets the list before its end"))
        }
        Failure::Other(reason) => (false, format!("cannot list {name} {place}: {reason}")),
    };
    Some(Missing { resource: *resource, forbidden, reason })
}

pub(in crate::collectors::kubernetes) fn escaped(token: &str) -> String {
    let mut out = String::with_capacity(token.len());
    for byte in token.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// An error with all its causes: the outer ones say little.
pub(in crate::collectors::kubernetes) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text.chars().take(ERROR_CHARS_MAX).collect()
}
