//! A NATS micro service that answers questions on `tapio.v1.query.…`.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};

use async_nats::service::{Service, ServiceExt, error};
use bytes::Bytes;
use futures::StreamExt;
use tapio_schemas::names;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{Bus, BusError, Headers};

/// Questions answered side by side, per endpoint; more wait in the subscription.
const QUERIES_AT_ONCE_MAX: usize = 64;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Subject it was asked on.
    pub subject: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Its headers.
    pub headers: Headers,
}

/// An answer that is an error; the asker gets [`BusError::Service`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryError {
    /// As in HTTP: 400 for a bad question, 404 for no such thing, 500 for our fault.
    pub code: usize,
    /// For people.
    pub message: String,
}

/// A running service. Dropping it stops it.
pub struct QueryService {
    service: Service,
    endpoints: Mutex<Vec<AbortOnDropHandle<()>>>,
}

impl fmt::Debug for QueryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueryService")
    }
}

impl Bus {
    /// Starts a micro service, which `nats micro ls` shows. `version` is semantic, as in `0.1.0`.
    ///
    /// # Errors
    /// [`BusError::Request`] when the name or the version is not allowed.
    pub async fn service(
        &self,
        name: &str,
        version: &str,
        description: &str,
    ) -> Result<QueryService, BusError> {
        let builder = self.inner.client.service_builder().description(description);
        let service = builder
            .start(name, version)
            .await
            .map_err(|error| BusError::Request { subject: name.to_owned(), message: error.to_string() })?;
        Ok(QueryService { service, endpoints: Mutex::default() })
    }
}

impl QueryService {
    /// Answers questions on `subject` with `handler`, up to 64 at a time.
    ///
    /// # Errors
    /// [`BusError::Request`] when the subject is not allowed.
    pub async fn endpoint<F, Fut>(&self, subject: &str, handler: F) -> Result<(), BusError>
    where
        F: Fn(Query) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Bytes, QueryError>> + Send + 'static,
    {
        let builder = self.service.endpoint_builder().name(names::token(subject));
        let mut requests = builder
            .add(subject)
            .await
            .map_err(|error| BusError::Request { subject: subject.to_owned(), message: error.to_string() })?;
        let handler = Arc::new(handler);
        let permits = Arc::new(Semaphore::new(QUERIES_AT_ONCE_MAX));
        let task = tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    answer(request, &*handler).await;
                    drop(permit);
                });
            }
        });
        self.endpoints.lock().expect("endpoints lock").push(AbortOnDropHandle::new(task));
        Ok(())
    }

    /// Stops answering.
    pub async fn stop(self) {
        if let Err(error) = self.service.stop().await {
            tracing::debug!(%error, "query service was gone already");
        }
    }
}

async fn answer<F, Fut>(request: async_nats::service::Request, handler: &F)
where
    F: Fn(Query) -> Fut,
    Fut: Future<Output = Result<Bytes, QueryError>>,
{
    let message = &request.message;
    let query = Query {
        subject: message.subject.to_string(),
        payload: message.payload.clone(),
        headers: Headers::from_map(message.headers.as_ref()),
    };
    let result = handler(query).await;
    let result = result.map_err(|failure| error::Error {
        // The status travels in a header: no line ends.
        status: failure.message.replace(['\r', '\n'], " "),
        code: failure.code,
    });
    if let Err(error) = request.respond(result).await {
        tracing::debug!(%error, "a question had no one to answer to");
    }
}
