//! Running one generation of a worker on a thread, as a task, or as an actor.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use actix::{Actor, Context};
use futures::FutureExt;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::ActorSlot;
use crate::clock::SharedClock;
use crate::health::Progress;
use crate::shutdown::Shutdown;

/// What a worker may fail with.
pub type WorkerError = Box<dyn std::error::Error + Send + Sync>;
/// How a worker ends.
pub type WorkerResult = Result<(), WorkerError>;

/// What one generation of a worker gets.
#[derive(Debug, Clone)]
pub struct WorkerContext {
    /// Name of the component.
    pub name: Arc<str>,
    /// Number of this generation, from 1.
    pub generation: u64,
    /// To be ticked, at least every `progress_timeout`.
    pub progress: Progress,
    /// Triggered when this generation should end.
    pub shutdown: Shutdown,
    /// The clock of the process.
    pub clock: SharedClock,
}

/// How a generation ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Ended,
    Error(String),
    Panicked(String),
}

/// A generation that runs.
pub(super) struct Running {
    /// An error means that the worker vanished without a word.
    pub(super) outcome: oneshot::Receiver<Outcome>,
    /// Ends a task by force.
    pub(super) abort: Option<AbortHandle>,
}

/// Builds and starts a generation.
pub(super) type Launcher = Arc<dyn Fn(WorkerContext) -> Running + Send + Sync>;

pub(super) fn on_thread<F>(factory: F) -> Launcher
where
    F: Fn(WorkerContext) -> WorkerResult + Send + Sync + 'static,
{
    let factory = Arc::new(factory);
    Arc::new(move |context| {
        let factory = Arc::clone(&factory);
        start_thread(context, move |context| from_caught(catch_unwind(AssertUnwindSafe(|| factory(context)))))
    })
}

pub(super) fn as_task<F, Fut>(runtime: tokio::runtime::Handle, factory: F) -> Launcher
where
    F: Fn(WorkerContext) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = WorkerResult> + Send + 'static,
{
    let factory = Arc::new(factory);
    Arc::new(move |context| {
        let (end, outcome) = oneshot::channel();
        let factory = Arc::clone(&factory);
        let task = runtime.spawn(async move {
            // The factory runs inside too: it may panic as well.
            let worker = AssertUnwindSafe(async { factory(context).await });
            // No one waits any more when the supervisor is gone.
            let _ = end.send(from_caught(worker.catch_unwind().await));
        });
        Running { outcome, abort: Some(task.abort_handle()) }
    })
}

pub(super) fn as_actor<A, F>(slot: ActorSlot<A>, grace: Duration, factory: F) -> Launcher
where
    A: Actor<Context = Context<A>>,
    F: Fn(WorkerContext) -> A + Send + Sync + 'static,
{
    let factory = Arc::new(factory);
    Arc::new(move |context| {
        let (factory, slot) = (Arc::clone(&factory), slot.clone());
        start_thread(context, move |context| {
            let run = || actix_rt::System::new().block_on(run_actor(slot, grace, &*factory, context));
            match catch_unwind(AssertUnwindSafe(run)) {
                Ok(outcome) => outcome,
                Err(panic) => Outcome::Panicked(panic_text(&*panic)),
            }
        })
    })
}

/// The context's own future is awaited here, rather than spawned, because that is where a panic in
/// a handler can be caught and told.
async fn run_actor<A, F>(slot: ActorSlot<A>, grace: Duration, factory: &F, context: WorkerContext) -> Outcome
where
    A: Actor<Context = Context<A>>,
    F: Fn(WorkerContext) -> A,
{
    let (shutdown, clock) = (context.shutdown.clone(), context.clock.clone());
    let actor = factory(context);
    let actor_context = Context::new();
    let running = actor_context.into_future(actor);
    let addr = running.address();
    slot.set(addr.clone());
    let mut running = std::pin::pin!(AssertUnwindSafe(running).catch_unwind());
    let grace_over = async {
        shutdown.wait().await;
        slot.clear(&addr);
        clock.sleep(grace).await;
    };
    let outcome = tokio::select! {
        biased;
        ended = &mut running => match ended {
            Ok(()) => Outcome::Ended,
            Err(panic) => Outcome::Panicked(panic_text(&*panic)),
        },
        () = grace_over => Outcome::Ended,
    };
    slot.clear(&addr);
    outcome
}

fn start_thread(
    context: WorkerContext,
    run: impl FnOnce(WorkerContext) -> Outcome + Send + 'static,
) -> Running {
    let (end, outcome) = oneshot::channel();
    let name = context.name.to_string();
    let spawned = thread::Builder::new().name(name).spawn(move || {
        // No one waits any more when the supervisor is gone.
        let _ = end.send(run(context));
    });
    match spawned {
        Ok(_) => Running { outcome, abort: None },
        Err(error) => {
            let (end, outcome) = oneshot::channel();
            let _ = end.send(Outcome::Error(format!("thread cannot be started: {error}")));
            Running { outcome, abort: None }
        }
    }
}

fn from_caught(result: Result<WorkerResult, Box<dyn Any + Send>>) -> Outcome {
    match result {
        Ok(Ok(())) => Outcome::Ended,
        Ok(Err(error)) => Outcome::Error(error.to_string()),
        Err(panic) => Outcome::Panicked(panic_text(&*panic)),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_owned())
}
