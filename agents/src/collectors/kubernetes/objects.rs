//! Single objects of an API server: reads, changes, and what the caller may do. Used only when a change was asked for;
//! lists and watches only read.

use std::fmt;
use std::time::Duration;

use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::snapshot::resources::{RESOURCES, Resource, of};

/// An answer has to come within this time, head and body.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const BYTES_MAX: usize = 32 << 20;
/// Letters of what a server says in an error.
const ERROR_CHARS_MAX: usize = 300;
/// Who changed a field, in its `managedFields`.
pub const FIELD_MANAGER: &str = "tapio-fix";
/// Kinds that can be named and are not listed by a snapshot.
const FURTHER: [Resource; 2] =
    [of("Secret", "v1", "secrets"), of("ControllerRevision", "apps/v1", "controllerrevisions")];

/// One object's place in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its kind.
    pub resource: Resource,
    /// Empty for objects of the cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Whether a change is made or only tried by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Admission and validation run, nothing is stored (`dryRun=All`).
    Dry,
    /// It is made.
    Real,
}

/// Why the server did not do it.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It said no.
    #[error("{what}: {status} {message}")]
    Refused {
        /// What was asked, such as `patch shop/Deployment/api`.
        what: String,
        /// Status of HTTP.
        status: u16,
        /// What the server says.
        message: String,
    },
    /// No whole answer, or none that can be read.
    #[error("{what}: {reason}")]
    NoAnswer {
        /// What was asked.
        what: String,
        /// Why.
        reason: String,
    },
}

impl ObjectError {
    /// The status, when the server answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            Self::NoAnswer { .. } => None,
        }
    }

    /// Whether the object is not what it was: somebody changed it meanwhile.
    pub fn is_conflict(&self) -> bool {
        matches!(self.status(), Some(409 | 422))
    }
}

/// The kind that stands so in paths; nothing for kinds that are not known.
pub fn by_plural(plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().chain(&FURTHER).find(|resource| resource.plural == plural)
}

impl Place {
    /// The place of an object of a known kind; nothing for kinds whose paths are not known. Letter case does not count.
    pub fn of(kind: &str, namespace: &str, name: &str) -> Option<Self> {
        let wanted = kind.to_ascii_lowercase();
        let is =
            |resource: &&Resource| resource.kind.eq_ignore_ascii_case(&wanted) || resource.plural == wanted;
        let resource = *RESOURCES.iter().chain(&FURTHER).find(is)?;
        let namespace = if resource.namespaced { namespace.to_owned() } else { String::new() };
        let is_name = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte)) && text != ".."
        };
        // Names go into paths as they are.
        let sound = is_name(&namespace) && is_name(name) && !name.is_empty();
        (sound && (!resource.namespaced || !namespace.is_empty())).then(|| Self {
            resource,
            namespace,
            name: name.to_owned(),
        })
    }

    fn collection(&self) -> String {
        self.resource.path(Some(&self.namespace))
    }

    fn path(&self) -> String {
        format!("{}/{}", self.collection(), self.name)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}/{}", self.resource.kind, self.name)
    }
}

/// An API server, for single objects.
#[derive(Clone)]
pub struct Objects {
    client: Client,
}

impl Objects {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// The object as it is.
    ///
    /// # Errors
    /// [`ObjectError`]: 404 when it is not there, 403 when it may not be read.
    pub async fn get(&self, place: &Place) -> Result<Value, ObjectError> {
        self.ask(format!("get {place}"), Method::GET, place.path(), None).await
    }

    /// All objects of the kind and namespace of `place`; its name does not count.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn list(&self, place: &Place) -> Result<Vec<Value>, ObjectError> {
        let what = format!("list {} in {}", place.resource.plural, place.namespace);
        let mut answer = self.ask(what, Method::GET, place.collection(), None).await?;
        Ok(answer["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// Whether the caller may do `verb` (`patch`, `create`, `delete`) there: a SelfSubjectAccessReview. `Err` in the
    /// inner result is the server's reason.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub async fn may(&self, verb: &str, place: &Place) -> Result<Result<(), String>, ObjectError> {
        let (group, _) = place.resource.api_version.split_once('/').unwrap_or(("", ""));
        let attributes = json!({"namespace": place.namespace, "verb": verb, "group": group,
            "resource": place.resource.plural, "name": place.name});
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned();
        let what = format!("ask whether {verb} of {place} is allowed");
        let answer = self.ask(what, Method::POST, path, Some(("application/json", &review))).await?;
        if answer["status"]["allowed"].as_bool() == Some(true) {
            return Ok(Ok(()));
        }
        let reason = answer["status"]["reason"].as_str().unwrap_or_default();
        Ok(Err(clipped(reason)))
    }

    /// Changes the object by a JSON patch (RFC 6902); gives it as it is then.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectError::is_conflict`] when a `test` or the version does not hold any more.
    pub async fn patch(&self, place: &Place, patch: &Value, run: Run) -> Result<Value, ObjectError> {
        let path = format!("{}?{}", place.path(), parameters(run));
        let body = Some(("application/json-patch+json", patch));
        self.ask(format!("patch {place}"), Method::PATCH, path, body).await
    }

    /// Makes an object; gives it as it is then.
    ///
    /// # Errors
    /// [`ObjectError`]; 409 when it is there.
    pub async fn create(&self, place: &Place, object: &Value, run: Run) -> Result<Value, ObjectError> {
        let path = format!("{}?{}", place.collection(), parameters(run));
        self.ask(format!("create {place}"), Method::POST, path, Some(("application/json", object))).await
    }

    /// Deletes the object, when it is still the one with this uid.
    ///
    /// # Errors
    /// [`ObjectError`]; 409 when it is another one by now.
    pub async fn delete(&self, place: &Place, uid: &str, run: Run) -> Result<Value, ObjectError> {
        let path = format!("{}?{}", place.path(), parameters(run));
        let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}});
        // The server reads the options of a deletion from the body when there is one, and then not from the query.
        if run == Run::Dry {
            options["dryRun"] = json!(["All"]);
        }
        let body = Some(("application/json", &options));
        self.ask(format!("delete {place}"), Method::DELETE, path, body).await
    }

    async fn ask(
        &self,
        what: String,
        method: Method,
        path: String,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ObjectError> {
        let no_answer = |reason: String| ObjectError::NoAnswer { what: what.clone(), reason };
        let mut request =
            Request::builder().method(method).uri(path).header(header::ACCEPT, "application/json");
        if let Some((kind, _)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let body = body.map_or_else(Body::empty, |(_, value)| Body::from(value.to_string().into_bytes()));
        let request = request.body(body).map_err(|error| no_answer(error.to_string()))?;
        let answer = tokio::time::timeout(TIME_MAX, self.whole(request)).await;
        let late = || no_answer(format!("no whole answer within {} s", TIME_MAX.as_secs()));
        let (status, bytes) = answer.map_err(|_| late())?.map_err(no_answer)?;
        let said: Result<Value, _> = serde_json::from_slice(&bytes);
        if status.is_success() {
            return said.map_err(|error| no_answer(format!("the answer is no JSON: {error}")));
        }
        let message = said.unwrap_or_default()["message"].as_str().map(clipped).unwrap_or_default();
        Err(ObjectError::Refused { what, status: status.as_u16(), message })
    }

    async fn whole(&self, request: Request<Body>) -> Result<(StatusCode, axum::body::Bytes), String> {
        let answer = self.client.send(request).await.map_err(|error| error.to_string())?;
        let (head, body) = Response::into_parts(answer.map(axum::body::Body::new));
        let bytes = axum::body::to_bytes(body, BYTES_MAX).await;
        Ok((head.status, bytes.map_err(|error| format!("the answer broke off: {error}"))?))
    }
}

fn parameters(run: Run) -> String {
    let dry = if run == Run::Dry { "&dryRun=All" } else { "" };
    format!("fieldManager={FIELD_MANAGER}&fieldValidation=Strict{dry}")
}

fn clipped(text: &str) -> String {
    text.chars().take(ERROR_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_paths_of_the_api_and_nothing_else_goes_into_them() {
        let api = Place::of("deployment", "shop", "api").unwrap();
        assert_eq!(api.path(), "/apis/apps/v1/namespaces/shop/deployments/api");
        assert_eq!(api.to_string(), "shop/Deployment/api");
        let node = Place::of("Node", "ignored", "n1").unwrap();
        assert_eq!((node.path().as_str(), node.namespace.as_str()), ("/api/v1/nodes/n1", ""));
        assert!(Place::of("serviceaccounts", "shop", "runner").is_some());
        for (kind, namespace, name) in [
            ("Widget", "shop", "a"),
            ("Pod", "", "a"),
            ("Pod", "shop", ""),
            ("Pod", "shop", "../a"),
            ("Pod", "a?b", "c"),
        ] {
            assert_eq!(Place::of(kind, namespace, name), None, "{kind} {namespace} {name}");
        }
    }
}
