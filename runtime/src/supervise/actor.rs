//! The supervisor actor: owns the components and decides.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, MessageResult,
    WrapFuture,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::worker::{Launcher, Outcome, WorkerContext};
use super::{ComponentState, ComponentStatus, RestartPolicy, SuperviseError};
use crate::clock::SharedClock;
use crate::health::{Health, Progress};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;

/// Time between two looks at everyone's progress.
const WATCHDOG_PERIOD: Duration = Duration::from_millis(250);
/// Requests that may wait for the supervisor.
const MAILBOX_CAPACITY: usize = 256;

type Counts = Family<[(&'static str, String); 1], Counter>;

#[derive(Message)]
#[rtype(result = "Result<(), SuperviseError>")]
pub(super) struct Add {
    pub(super) name: Arc<str>,
    pub(super) policy: RestartPolicy,
    pub(super) launcher: Launcher,
}

#[derive(Message)]
#[rtype(result = "Vec<ComponentStatus>")]
pub(super) struct GetStatus;

/// Answers with a receiver that resolves when the component has ended.
#[derive(Message)]
#[rtype(result = "oneshot::Receiver<()>")]
pub(super) struct StopOne {
    pub(super) name: String,
}

#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Quit;

/// Starts the actor on a thread of its own.
pub(super) fn start(supervisor: Supervisor) -> io::Result<Addr<Supervisor>> {
    let (started, start) = mpsc::sync_channel(1);
    thread::Builder::new().name("supervisor".to_owned()).spawn(move || {
        actix_rt::System::new().block_on(async move {
            let mut context = Context::new();
            context.set_mailbox_capacity(MAILBOX_CAPACITY);
            let running = context.into_future(supervisor);
            let _ = started.send(running.address());
            running.await;
        });
    })?;
    start.recv().map_err(io::Error::other)
}

pub(super) struct Supervisor {
    clock: SharedClock,
    health: Health,
    restarts: Counts,
    panics: Counts,
    abandoned: Counts,
    components: Vec<Component>,
}

struct Component {
    name: Arc<str>,
    policy: RestartPolicy,
    launcher: Launcher,
    state: ComponentState,
    generation: u64,
    restarts: u64,
    /// When the restarts within the window were, on the clock's monotonic time.
    recent: VecDeque<Duration>,
    last_error: Option<String>,
    progress: Progress,
    shutdown: Shutdown,
    abort: Option<AbortHandle>,
    stopping: bool,
    stop_waiters: Vec<oneshot::Sender<()>>,
}

impl Component {
    fn has_worker(&self) -> bool {
        matches!(self.state, ComponentState::Running | ComponentState::Stuck)
    }

    fn stopped(&mut self) {
        self.state = ComponentState::Stopped;
        for waiter in self.stop_waiters.drain(..) {
            // The one who stopped us may have given up at its deadline.
            let _ = waiter.send(());
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        self.arm_watchdog(context);
    }

    fn stopped(&mut self, _context: &mut Context<Self>) {
        for component in &self.components {
            component.shutdown.trigger();
        }
    }
}

impl Supervisor {
    pub(super) fn new(clock: SharedClock, health: Health, metrics: &Metrics) -> Self {
        Self {
            clock,
            health,
            restarts: metrics.shared("supervise_restarts", "Restarts by component"),
            panics: metrics.shared("supervise_panics", "Panics by component"),
            abandoned: metrics.shared("supervise_abandoned", "Stuck workers left behind, by component"),
            components: Vec::new(),
        }
    }

    fn arm_watchdog(&self, context: &mut Context<Self>) {
        let pause = self.clock.sleep(WATCHDOG_PERIOD).into_actor(self);
        context.spawn(pause.map(|(), supervisor, context| {
            supervisor.watch(context);
            supervisor.arm_watchdog(context);
        }));
    }

    /// Looks for workers that stopped moving.
    fn watch(&mut self, context: &mut Context<Self>) {
        for index in 0..self.components.len() {
            let component = &self.components[index];
            let age = component.progress.age();
            let stuck = component.policy.progress_timeout.is_some_and(|limit| age > limit);
            if component.state == ComponentState::Running && !component.stopping && stuck {
                self.give_up_on(index, age, context);
            }
        }
    }

    fn give_up_on(&mut self, index: usize, age: Duration, context: &mut Context<Self>) {
        let component = &mut self.components[index];
        let reason = format!("no progress for {age:?}");
        tracing::warn!(component = &*component.name, reason, "stuck; asked to stop");
        component.state = ComponentState::Stuck;
        component.last_error = Some(reason);
        component.shutdown.trigger();
        let generation = component.generation;
        let grace = self.clock.sleep(component.policy.stop_grace).into_actor(self);
        context.spawn(grace.map(move |(), supervisor, context| {
            supervisor.abandon(index, generation, context);
        }));
    }

    /// The grace of a stuck worker is over.
    fn abandon(&mut self, index: usize, generation: u64, context: &mut Context<Self>) {
        let component = &mut self.components[index];
        if component.generation != generation || component.state != ComponentState::Stuck {
            return;
        }
        if let Some(abort) = component.abort.take() {
            abort.abort();
        }
        self.abandoned.get_or_create(&label(&component.name)).inc();
        tracing::error!(component = &*component.name, generation, "stuck worker is abandoned");
        if component.stopping {
            component.stopped();
        } else {
            self.schedule_restart(index, context);
        }
    }

    fn launch(&mut self, index: usize, context: &mut Context<Self>) {
        let component = &mut self.components[index];
        component.generation += 1;
        component.shutdown = Shutdown::new();
        // A fresh registration, so that a stuck predecessor cannot tick for its successor.
        let limit = component.policy.progress_timeout;
        component.progress = self.health.register(&component.name, limit);
        component.state = ComponentState::Running;
        let running = (component.launcher)(WorkerContext {
            name: Arc::clone(&component.name),
            generation: component.generation,
            progress: component.progress.clone(),
            shutdown: component.shutdown.clone(),
            clock: self.clock.clone(),
        });
        component.abort = running.abort;
        let generation = component.generation;
        context.spawn(running.outcome.into_actor(self).map(move |outcome, supervisor, context| {
            let vanished = || Outcome::Error("ended without a word".to_owned());
            supervisor.ended(index, generation, outcome.unwrap_or_else(|_| vanished()), context);
        }));
    }

    fn ended(&mut self, index: usize, generation: u64, outcome: Outcome, context: &mut Context<Self>) {
        let component = &mut self.components[index];
        if component.generation != generation || !component.has_worker() {
            // An abandoned predecessor came to its end.
            return;
        }
        let was_stuck = component.state == ComponentState::Stuck;
        if let Outcome::Panicked(_) = outcome {
            self.panics.get_or_create(&label(&component.name)).inc();
        }
        match outcome {
            Outcome::Error(text) => component.last_error = Some(text),
            Outcome::Panicked(text) => component.last_error = Some(format!("panicked: {text}")),
            Outcome::Ended if component.stopping || was_stuck => {}
            Outcome::Ended if component.policy.may_finish => {
                component.state = ComponentState::Finished;
                self.health.remove(&component.name);
                return;
            }
            Outcome::Ended => component.last_error = Some("ended before it was asked to".into()),
        }
        if component.stopping {
            component.stopped();
            self.health.remove(&self.components[index].name);
        } else {
            self.schedule_restart(index, context);
        }
    }

    fn schedule_restart(&mut self, index: usize, context: &mut Context<Self>) {
        let now = self.clock.monotonic();
        let component = &mut self.components[index];
        let window = component.policy.budget_window;
        component.recent.retain(|at| now.saturating_sub(*at) < window);
        let used = u32::try_from(component.recent.len()).unwrap_or(u32::MAX);
        let reason = component.last_error.clone().unwrap_or_default();
        if used >= component.policy.budget {
            component.state = ComponentState::Failed;
            tracing::error!(component = &*component.name, reason, "restart budget is spent");
            let text = format!("failed {used} times within {window:?}; the last time: {reason}");
            component.progress.fail(text);
            return;
        }
        component.recent.push_back(now);
        component.restarts += 1;
        component.state = ComponentState::BackingOff;
        // Not ready until the next generation moves.
        let limit = component.policy.progress_timeout;
        component.progress = self.health.register(&component.name, limit);
        self.restarts.get_or_create(&label(&component.name)).inc();
        let delay = component.policy.backoff().delay(used);
        tracing::warn!(component = &*component.name, reason, ?delay, "restarting");
        let pause = self.clock.sleep(delay).into_actor(self);
        context.spawn(pause.map(move |(), supervisor, context| {
            if supervisor.components[index].state == ComponentState::BackingOff {
                supervisor.launch(index, context);
            }
        }));
    }
}

fn label(name: &str) -> [(&'static str, String); 1] {
    [("component", name.to_owned())]
}

impl Handler<Add> for Supervisor {
    type Result = Result<(), SuperviseError>;

    fn handle(&mut self, add: Add, context: &mut Context<Self>) -> Self::Result {
        if self.components.iter().any(|component| component.name == add.name) {
            return Err(SuperviseError::Duplicate(add.name.to_string()));
        }
        let progress = self.health.register(&add.name, add.policy.progress_timeout);
        self.components.push(Component {
            name: add.name,
            policy: add.policy,
            launcher: add.launcher,
            state: ComponentState::BackingOff,
            generation: 0,
            restarts: 0,
            recent: VecDeque::new(),
            last_error: None,
            progress,
            shutdown: Shutdown::new(),
            abort: None,
            stopping: false,
            stop_waiters: Vec::new(),
        });
        self.launch(self.components.len() - 1, context);
        Ok(())
    }
}

impl Handler<GetStatus> for Supervisor {
    type Result = Vec<ComponentStatus>;

    fn handle(&mut self, _: GetStatus, _context: &mut Context<Self>) -> Self::Result {
        let status = |component: &Component| ComponentStatus {
            name: component.name.to_string(),
            state: component.state,
            generation: component.generation,
            restarts: component.restarts,
            last_error: component.last_error.clone(),
            progress_age: component.progress.age(),
        };
        self.components.iter().map(status).collect()
    }
}

impl Handler<StopOne> for Supervisor {
    type Result = MessageResult<StopOne>;

    fn handle(&mut self, stop: StopOne, _context: &mut Context<Self>) -> Self::Result {
        let (waiter, ended) = oneshot::channel();
        let found = self.components.iter_mut().find(|component| *component.name == *stop.name);
        match found {
            Some(component) if component.has_worker() => {
                component.stopping = true;
                component.stop_waiters.push(waiter);
                component.shutdown.trigger();
            }
            Some(component) => {
                component.stopping = true;
                component.stop_waiters.push(waiter);
                if component.state == ComponentState::BackingOff {
                    component.state = ComponentState::Stopped;
                }
                for waiter in component.stop_waiters.drain(..) {
                    let _ = waiter.send(());
                }
            }
            // Dropping the waiter ends the wait.
            None => drop(waiter),
        }
        MessageResult(ended)
    }
}

impl Handler<Quit> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Quit, context: &mut Context<Self>) {
        context.stop();
    }
}
