//! Wires the service, in the direction of the flow:
//! insights stream → [`Consumer`] → [`Writer`] → [`crate::store::Store`] and, for what is open and
//! unsure, [`OpenFindings`] → [`crate::view`] → [`GrpcApi`] and NATS queries.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tapio_runtime::bus::{Bus, BusError};
use tapio_runtime::clock::SharedClock;
use tapio_runtime::health::Health;
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::supervise::{
    ActorSlot, RestartPolicy, StopReport, SuperviseError, Supervision, WorkerContext,
};
use tapio_runtime::telemetry::Metrics;
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::api::answers::Answers;
use crate::api::grpc::{self, GrpcApi};
use crate::api::nats;
use crate::cell::StoreCell;
use crate::condition::Condition;
use crate::config::StorageConfig;
use crate::consumer::{Consumer, Intake};
use crate::freshness::Freshness;
use crate::learning::{Learnt, add_publisher};
use crate::live::Live;
use crate::open::OpenFindings;
use crate::rebuild::{RebuildError, rebuild};
use crate::status::{self, Word};
use crate::store::{Limits, StoreError, StoreMetrics, StoreOptions};
use crate::writer::{Writer, WriterParts};

/// A write that takes longer stands still. A slow disk is none that stands still, and another writer could not use it sooner.
const WRITE_TIME_MAX: Duration = Duration::from_secs(120);
/// Time for all parts to stop.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Time for open requests to finish.
const REQUESTS_GRACE: Duration = Duration::from_secs(3);

/// Why the service did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A setting is out of range.
    #[error("storage.{key}: {message}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong.
        message: &'static str,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address.
    #[error("cannot listen on {listen} (storage.listen): {source}")]
    Listen {
        /// `storage.listen`.
        listen: String,
        /// The reason.
        source: std::io::Error,
    },
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The supervision.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
}

/// What the service gets from its process.
#[derive(Debug, Clone)]
pub struct StorageParts {
    /// Connected, with streams ensured.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
    /// Health registry.
    pub health: Health,
    /// Metrics registry.
    pub metrics: Metrics,
}

/// The storage service.
#[derive(Debug)]
pub struct StorageService;

/// A running service. Dropping it does not drain it; [`StorageHandle::drain`] does.
pub struct StorageHandle {
    supervision: Supervision,
    grpc_addr: SocketAddr,
    bus: Bus,
    cell: StoreCell,
}

impl StorageService {
    /// Opens the store, binds the API and starts the parts, consumer last.
    ///
    /// # Errors
    /// [`StorageError`]: a setting, the store, the address, NATS.
    pub async fn start(config: StorageConfig, parts: StorageParts) -> Result<StorageHandle, StorageError> {
        config.check().map_err(|(key, message)| StorageError::Config { key, message })?;
        let (listener, grpc_addr) = grpc::bind(&config.listen)
            .await
            .map_err(|source| StorageError::Listen { listen: config.listen.clone(), source })?;
        let StorageParts { bus, clock, health, metrics } = parts;
        let store_metrics = StoreMetrics::register(&metrics);
        let cell = open_store(&config, store_metrics.clone(), clock.clone()).await?;
        let live = Live::new(config.subscribers, &metrics);
        let open = OpenFindings::new(&metrics);
        // Before anything is answered: an answer without them would call trouble healthy.
        rebuild(&bus, &cell, &open).await?;
        let condition = Condition::default();
        let freshness = Freshness::new(bus.clone(), clock.clone());
        let supervision = Supervision::start(clock.clone(), health, &metrics)?;

        let learnt = Learnt::default();
        let parts = WriterParts {
            cell: cell.clone(),
            open: open.clone(),
            live: live.clone(),
            condition: condition.clone(),
            learnt: learnt.clone(),
        };
        let writer = add_writer(&supervision, &config, parts).await?;
        let answers = Answers::new(cell.clone(), open, freshness, condition.clone(), writer.clone());
        add_publisher(&supervision, bus.clone(), cell.clone(), learnt).await?;
        add_grpc(&supervision, listener, grpc_addr, answers.clone(), live).await?;
        add_queries(&supervision, &bus, answers).await?;
        let name = format!("{}-{:016x}", config.consumer, cell.get()?.id());
        let word = Word {
            name: name.clone(),
            metrics: store_metrics.clone(),
            condition: condition.clone(),
            bus: bus.clone(),
            clock,
        };
        status::add(&supervision, word).await?;
        let intake = Intake {
            name,
            ack_wait: config.ack_wait.get(),
            flush_interval: config.flush_interval.get(),
            flush_findings: config.flush_findings,
        };
        let consumer = Consumer { bus: bus.clone(), intake, writer, metrics: store_metrics, condition };
        add_consumer(&supervision, consumer).await?;
        tracing::info!(%grpc_addr, path = %config.path.display(), "storage service started");
        Ok(StorageHandle { supervision, grpc_addr, bus, cell })
    }
}

impl From<RebuildError> for StorageError {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::Bus(error) => Self::Bus(error),
            RebuildError::Store(error) => Self::Store(error),
        }
    }
}

impl StorageHandle {
    /// Where the gRPC API listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Counters of the store.
    pub fn store_metrics(&self) -> &StoreMetrics {
        self.cell.metrics()
    }

    /// The supervised parts.
    pub fn supervision(&self) -> &Supervision {
        &self.supervision
    }

    /// Stops the intake, stores and acknowledges what was on its way, then ends the API and closes
    /// the store.
    ///
    /// # Errors
    /// [`StorageError::Supervise`] when the supervisor is gone.
    pub async fn drain(self) -> Result<StopReport, StorageError> {
        let report = self.supervision.stop(DRAIN_MAX).await?;
        if let Err(error) = self.bus.flush().await {
            tracing::debug!(%error, "acknowledgements may be lost; their findings come again");
        }
        Ok(report)
    }
}

/// Opening may read the whole store (migration).
async fn open_store(
    config: &StorageConfig,
    metrics: StoreMetrics,
    clock: SharedClock,
) -> Result<StoreCell, StorageError> {
    let options = StoreOptions {
        path: config.path.clone(),
        cache_bytes: usize::try_from(config.cache.bytes()).unwrap_or(usize::MAX),
        page_cache_bytes: config.page_cache.bytes(),
    };
    let opening = tokio::task::spawn_blocking(move || StoreCell::open(options, metrics, clock));
    match opening.await {
        Ok(cell) => Ok(cell?),
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

async fn add_writer(
    supervision: &Supervision,
    config: &StorageConfig,
    parts: WriterParts,
) -> Result<ActorSlot<Writer>, SuperviseError> {
    let limits = Limits { age_max: config.retention_age.get(), bytes_max: config.retention_bytes.bytes() };
    let interval = config.retention_interval.get();
    let factory = move |context: WorkerContext| Writer::new(parts.clone(), limits, interval, context);
    let policy = RestartPolicy { progress_timeout: Some(WRITE_TIME_MAX), ..RestartPolicy::default() };
    supervision.add_actor("storage-writer", policy, factory).await
}

/// The first generation takes the listener that was bound at the start; a later one binds the same
/// address again.
async fn add_grpc(
    supervision: &Supervision,
    listener: TcpListener,
    addr: SocketAddr,
    answers: Answers,
    live: Live,
) -> Result<(), SuperviseError> {
    let first = Arc::new(Mutex::new(Some(listener)));
    let factory = move |context: WorkerContext| {
        let (first, answers, live) = (Arc::clone(&first), answers.clone(), live.clone());
        async move {
            let listener = match first.lock().await.take() {
                Some(listener) => listener,
                None => TcpListener::bind(addr).await?,
            };
            let subscriptions = Shutdown::new();
            let api = GrpcApi::new(answers, live, subscriptions.clone());
            let serving = api.serve(listener);
            tokio::pin!(serving);
            context.progress.tick();
            tokio::select! {
                served = &mut serving => return served,
                () = context.shutdown.wait() => subscriptions.trigger(),
            }
            tokio::select! {
                served = serving => served,
                // A client that does not close its connection must not hold up the stop.
                () = context.clock.sleep(REQUESTS_GRACE) => Ok(()),
            }
        }
    };
    let policy = RestartPolicy { progress_timeout: None, ..RestartPolicy::default() };
    supervision.add_task("storage-grpc", policy, factory).await
}

async fn add_queries(supervision: &Supervision, bus: &Bus, answers: Answers) -> Result<(), SuperviseError> {
    let bus = bus.clone();
    let factory = move |context: WorkerContext| {
        let (bus, answers) = (bus.clone(), answers.clone());
        async move {
            let service = nats::serve(&bus, &answers).await?;
            context.progress.tick();
            context.shutdown.wait().await;
            service.stop().await;
            Ok(())
        }
    };
    let policy = RestartPolicy { progress_timeout: None, ..RestartPolicy::default() };
    supervision.add_task("storage-queries", policy, factory).await
}

async fn add_consumer(supervision: &Supervision, consumer: Consumer) -> Result<(), SuperviseError> {
    let consumer = Arc::new(consumer);
    let factory = move |context: WorkerContext| {
        let consumer = Arc::clone(&consumer);
        async move { consumer.run(context).await }
    };
    supervision.add_task("storage-consumer", RestartPolicy::default(), factory).await
}
