use std::sync::atomic::{AtomicU64, Ordering};

use actix::{Context, Handler, Message};
use tokio::sync::mpsc;

use super::*;
use crate::clock::ManualClock;
use crate::shutdown::Shutdown;

const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    clock: ManualClock,
    health: Health,
    metrics: Metrics,
    supervision: Supervision,
}

fn fixture() -> Fixture {
    let clock = ManualClock::new(0);
    let health = Health::new(clock.shared());
    let metrics = Metrics::new();
    let supervision = Supervision::start(clock.shared(), health.clone(), &metrics).unwrap();
    Fixture { clock, health, metrics, supervision }
}

/// No jitter: tests advance the clock by exact amounts.
/// Without a watch on progress: the manual clock runs far ahead of a worker's thread. Tests about progress set one.
fn policy() -> RestartPolicy {
    RestartPolicy { jitter: 0.0, budget: 3, progress_timeout: None, ..RestartPolicy::default() }
}

impl Fixture {
    async fn one(&self) -> ComponentStatus {
        self.supervision.status().await.unwrap().remove(0)
    }

    /// Advances the clock in watchdog steps until the condition holds. The state of the supervisor
    /// changes on its own thread, so this asks it again and again.
    async fn advance_until(&self, wanted: impl Fn(&ComponentStatus) -> bool) -> ComponentStatus {
        let waiting = async {
            loop {
                let status = self.one().await;
                if wanted(&status) {
                    return status;
                }
                self.clock.advance(Duration::from_millis(50));
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the component gets there")
    }
}

#[tokio::test]
async fn a_panicking_thread_is_built_anew() {
    let fixture = fixture();
    let (started, mut starts) = mpsc::unbounded_channel();
    let factory = move |context: WorkerContext| {
        started.send(context.generation).unwrap();
        if context.generation == 1 {
            panic!("first time unlucky");
        }
        context.progress.tick();
        futures::executor::block_on(context.shutdown.wait());
        Ok(())
    };
    fixture.supervision.add_thread("worker", policy(), factory).await.unwrap();
    assert_eq!(starts.recv().await, Some(1));
    let status = fixture.advance_until(|status| status.generation == 2).await;
    assert_eq!(starts.recv().await, Some(2));
    assert_eq!(status.last_error.as_deref(), Some("panicked: first time unlucky"));
    assert_eq!((status.restarts, status.state), (1, ComponentState::Running));
    let text = fixture.metrics.encode();
    assert!(text.contains("tapio_supervise_panics_total{component=\"worker\"} 1"), "{text}");
    let report = fixture.supervision.stop(PATIENCE).await.unwrap();
    assert_eq!(report.stopped, ["worker"]);
    assert_eq!(fixture.one().await.state, ComponentState::Stopped);
}

#[tokio::test]
async fn restarts_wait_for_the_backoff() {
    let fixture = fixture();
    let (started, mut starts) = mpsc::unbounded_channel();
    let factory = move |context: WorkerContext| {
        let started = started.clone();
        async move {
            started.send(context.generation).unwrap();
            Err::<(), _>(WorkerError::from("no luck"))
        }
    };
    fixture.supervision.add_task("worker", policy(), factory).await.unwrap();
    assert_eq!(starts.recv().await, Some(1));
    // The watchdog and the backoff sleep.
    fixture.clock.wait_for_sleepers(2).await;
    fixture.clock.advance(Duration::from_millis(99));
    assert_eq!(fixture.one().await.state, ComponentState::BackingOff);
    assert_eq!(fixture.one().await.last_error.as_deref(), Some("no luck"));
    fixture.clock.advance(Duration::from_millis(1));
    assert_eq!(starts.recv().await, Some(2));
}

#[tokio::test]
async fn a_spent_budget_fails_the_component_and_the_process() {
    let fixture = fixture();
    let builds = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&builds);
    let factory = move |_: WorkerContext| {
        counted.fetch_add(1, Ordering::SeqCst);
        Err(WorkerError::from("broken"))
    };
    fixture.supervision.add_thread("worker", policy(), factory).await.unwrap();
    let status = fixture.advance_until(|status| status.state == ComponentState::Failed).await;
    assert_eq!((status.restarts, builds.load(Ordering::SeqCst)), (3, 4));
    assert!(!fixture.health.is_live() && !fixture.health.is_ready());
    let detail = fixture.health.report()[0].detail.clone().unwrap();
    assert!(detail.contains("failed 3 times") && detail.ends_with("broken"), "{detail}");
    fixture.clock.advance(Duration::from_secs(600));
    assert_eq!(fixture.one().await.state, ComponentState::Failed, "no way back by itself");
}

#[tokio::test]
async fn a_budget_is_per_window() {
    let fixture = fixture();
    let factory = |_: WorkerContext| async { Err::<(), _>(WorkerError::from("now and then")) };
    let policy = RestartPolicy { budget: 2, budget_window: Duration::from_secs(1), ..policy() };
    let policy = RestartPolicy { backoff_min: Duration::from_secs(1), ..policy };
    fixture.supervision.add_task("worker", policy, factory).await.unwrap();
    let status = fixture.advance_until(|status| status.restarts == 6).await;
    assert_ne!(status.state, ComponentState::Failed);
}

#[tokio::test]
async fn a_stuck_thread_is_asked_then_abandoned() {
    let fixture = fixture();
    let release = Shutdown::new();
    let hold = release.clone();
    let factory = move |context: WorkerContext| {
        if context.generation == 1 {
            // Deaf to its own shutdown.
            futures::executor::block_on(hold.wait());
            context.progress.tick();
            return Ok(());
        }
        context.progress.tick();
        futures::executor::block_on(context.shutdown.wait());
        Ok(())
    };
    let policy = RestartPolicy { progress_timeout: Some(Duration::from_secs(2)), ..policy() };
    fixture.supervision.add_thread("worker", policy, factory).await.unwrap();
    let status = fixture.advance_until(|status| status.state == ComponentState::Stuck).await;
    assert!(status.last_error.unwrap().starts_with("no progress for 2."));
    assert!(!fixture.health.is_ready());
    fixture.advance_until(|status| status.generation == 2).await;
    let text = fixture.metrics.encode();
    assert!(text.contains("tapio_supervise_abandoned_total{component=\"worker\"} 1"), "{text}");
    release.trigger();
    let report = fixture.supervision.stop(PATIENCE).await.unwrap();
    assert_eq!(report.stopped, ["worker"]);
    assert_eq!(fixture.one().await.generation, 2, "the late end of the first changes nothing");
}

#[tokio::test]
async fn a_stuck_task_that_obeys_is_replaced_without_being_abandoned() {
    let fixture = fixture();
    let factory = |context: WorkerContext| async move {
        context.shutdown.wait().await;
        Ok(())
    };
    let policy = RestartPolicy { progress_timeout: Some(Duration::from_secs(1)), ..policy() };
    fixture.supervision.add_task("worker", policy, factory).await.unwrap();
    let status = fixture.advance_until(|status| status.generation == 2).await;
    assert!(status.last_error.unwrap().starts_with("no progress"));
    assert!(!fixture.metrics.encode().contains("supervise_abandoned_total{"));
}

#[tokio::test]
async fn finite_work_may_finish() {
    let fixture = fixture();
    let policy = RestartPolicy { may_finish: true, ..policy() };
    fixture.supervision.add_task("once", policy, |_| async { Ok(()) }).await.unwrap();
    let status = fixture.advance_until(|status| status.state == ComponentState::Finished).await;
    assert_eq!((status.generation, status.last_error), (1, None));
    assert!(fixture.health.report().is_empty());
    let again = fixture.supervision.add_task("once", policy, |_| async { Ok(()) }).await;
    assert!(matches!(again, Err(SuperviseError::Duplicate(name)) if name == "once"));
}

#[tokio::test]
async fn an_early_end_is_a_failure_unless_allowed() {
    let fixture = fixture();
    fixture.supervision.add_task("daemon", policy(), |_| async { Ok(()) }).await.unwrap();
    let status = fixture.advance_until(|status| status.restarts == 1).await;
    assert_eq!(status.last_error.as_deref(), Some("ended before it was asked to"));
}

#[tokio::test]
async fn stops_in_reverse_order_and_abandons_at_the_deadline() {
    let fixture = fixture();
    let (stopped, mut stops) = mpsc::unbounded_channel();
    for name in ["sink", "middle", "source"] {
        let stopped = stopped.clone();
        let factory = move |context: WorkerContext| {
            let stopped = stopped.clone();
            async move {
                context.shutdown.wait().await;
                stopped.send(context.name.to_string()).unwrap();
                Ok(())
            }
        };
        fixture.supervision.add_task(name, policy(), factory).await.unwrap();
    }
    let deaf = |_: WorkerContext| std::future::pending::<WorkerResult>();
    let report = fixture.supervision.stop(PATIENCE).await.unwrap();
    assert_eq!(report.stopped, ["source", "middle", "sink"]);
    assert!(report.abandoned.is_empty());
    for expected in ["source", "middle", "sink"] {
        assert_eq!(stops.recv().await.as_deref(), Some(expected));
    }
    fixture.supervision.add_task("deaf", policy(), deaf).await.unwrap();
    let report = fixture.supervision.stop(Duration::from_millis(20)).await.unwrap();
    assert_eq!(report.abandoned, ["deaf"]);
}

/// An actor that doubles numbers, panics on 13, and stops when asked to.
struct Doubler {
    context: WorkerContext,
}

#[derive(Message)]
#[rtype(result = "(u64, u64)")]
struct Double(u64);

impl actix::Actor for Doubler {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        use actix::{ActorContext, ActorFutureExt, AsyncContext, WrapFuture};
        self.context.progress.tick();
        let shutdown = self.context.shutdown.clone();
        let asked = async move { shutdown.wait().await }.into_actor(self);
        context.spawn(asked.map(|(), _, context| context.stop()));
    }
}

impl Handler<Double> for Doubler {
    type Result = actix::MessageResult<Double>;

    fn handle(&mut self, Double(number): Double, _: &mut Context<Self>) -> Self::Result {
        assert_ne!(number, 13, "unlucky");
        actix::MessageResult((number * 2, self.context.generation))
    }
}

#[tokio::test]
async fn a_panicking_actor_gets_a_new_address_in_the_same_slot() {
    let fixture = fixture();
    let factory = |context| Doubler { context };
    let slot = fixture.supervision.add_actor("doubler", policy(), factory).await.unwrap();
    let first = slot.wait().await;
    assert_eq!(first.send(Double(4)).await.unwrap(), (8, 1));
    assert!(first.send(Double(13)).await.is_err());
    let status = fixture.advance_until(|status| status.generation == 2).await;
    assert!(status.last_error.unwrap().contains("unlucky"));
    let second = slot.wait().await;
    assert_eq!(second.send(Double(5)).await.unwrap(), (10, 2));
    assert!(first.send(Double(4)).await.is_err(), "the old address is dead");
    let report = fixture.supervision.stop(PATIENCE).await.unwrap();
    assert_eq!(report.stopped, ["doubler"]);
    assert!(slot.get().is_none());
}

#[tokio::test]
async fn dropping_the_last_handle_asks_everyone_to_stop() {
    let fixture = fixture();
    let (stopped, mut stops) = mpsc::unbounded_channel();
    let factory = move |context: WorkerContext| {
        let stopped = stopped.clone();
        async move {
            context.shutdown.wait().await;
            stopped.send(()).unwrap();
            Ok(())
        }
    };
    fixture.supervision.add_task("worker", policy(), factory).await.unwrap();
    drop(fixture.supervision);
    tokio::time::timeout(PATIENCE, stops.recv()).await.unwrap().unwrap();
}
