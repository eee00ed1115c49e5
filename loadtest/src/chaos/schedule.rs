//! What is done to whom and when: a function of the seed.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::load::random::Random;

/// Who suffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A correlator, by number.
    Correlator(usize),
    /// The storage service.
    Storage,
    /// The producer of the load, which stands for node agents.
    Sender,
    /// The node agent of this machine.
    Agent,
    /// The nats-server.
    Nats,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// `kill -9`, and a start some time later.
    Kill,
    /// SIGSTOP, and SIGCONT some time later.
    Pause,
    /// SIGTERM, and a start once it has ended: of services with code 0, else that is noted.
    Restart,
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Action {
    /// After the beginning of the load.
    pub at: Duration,
    /// Until it is undone.
    pub lasts: Duration,
    /// To whom.
    pub target: Target,
    /// What.
    pub harm: Harm,
}

impl Action {
    /// Something to do at once, until it is undone.
    pub fn now(target: Target, harm: Harm) -> Self {
        Self { at: Duration::ZERO, lasts: Duration::ZERO, target, harm }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Correlator(number) => write!(f, "correlator-{number}"),
            Self::Storage => f.write_str("storage"),
            Self::Sender => f.write_str("sender"),
            Self::Agent => f.write_str("agent"),
            Self::Nats => f.write_str("nats-server"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.harm {
            Harm::Kill => "kill -9",
            Harm::Pause => "SIGSTOP",
            Harm::Restart => "restart",
        };
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(f, "{at:7.1} s  {what:<8} {:<14} for {lasts:.1} s", self.target.to_string())
    }
}

/// A step of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The harm is done.
    Begin,
    /// It is undone.
    End,
}

/// Nothing happens to a target that is being harmed, nor right after: an action is put back by so much.
const REST: Duration = Duration::from_secs(2);

/// `count` actions between `from` and `until`. Every kind of target is hit from eight actions on, and correlators in turn.
pub fn plan(seed: u64, count: usize, replicas: usize, from: Duration, until: Duration) -> Vec<Action> {
    let mut random = Random::new(seed).fork(7);
    let mut targets: Vec<Target> = (0..count)
        .map(|number| match number % 8 {
            1 => Target::Nats,
            3 => Target::Storage,
            5 => Target::Sender,
            7 => Target::Agent,
            _ => Target::Correlator(number / 2 % replicas.max(1)),
        })
        .collect();
    random.shuffle(&mut targets);
    let span = until.saturating_sub(from);
    let mut moments: Vec<f64> = (0..count).map(|_| random.unit()).collect();
    moments.sort_by(f64::total_cmp);
    let mut actions: Vec<Action> = Vec::new();
    for (target, moment) in targets.into_iter().zip(moments) {
        let harm = [Harm::Kill, Harm::Pause, Harm::Restart][random.below(3)];
        let lasts = Duration::from_secs_f64(match harm {
            Harm::Kill => 0.2 + 3.0 * random.unit(),
            Harm::Pause => 0.5 + 5.0 * random.unit(),
            Harm::Restart => 0.2 + random.unit(),
        });
        let free = actions.iter().filter(|a| a.target == target).map(|a| a.at + a.lasts + REST).max();
        let at = (from + span.mul_f64(moment)).max(free.unwrap_or_default());
        actions.push(Action { at, lasts, target, harm });
    }
    actions.sort_by_key(|action| (action.at, action.target));
    actions
}

/// Beginnings and ends in the order of time: (when, number of the action, which).
pub type Steps = VecDeque<(Duration, usize, Step)>;

/// Those of all actions.
pub fn steps(actions: &[Action]) -> Steps {
    let mut steps = actions.iter().enumerate().flat_map(|(number, action)| of(number, action)).collect();
    sort(&mut steps);
    steps
}

/// Puts back an action that has not begun, and both of its steps. Those of others are not kept waiting.
pub fn put_back(actions: &mut [Action], steps: &mut Steps, number: usize) {
    let action = &mut actions[number];
    action.at += REST;
    steps.retain(|(_, other, _)| *other != number);
    steps.extend(of(number, action));
    sort(steps);
}

fn of(number: usize, action: &Action) -> [(Duration, usize, Step); 2] {
    [(action.at, number, Step::Begin), (action.at + action.lasts, number, Step::End)]
}

fn sort(steps: &mut Steps) {
    steps.make_contiguous().sort_by_key(|(at, number, step)| (*at, *number, *step == Step::End));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn five_minutes(seed: u64) -> Vec<Action> {
        plan(seed, 20, 3, Duration::from_secs(8), Duration::from_secs(280))
    }

    #[test]
    fn everybody_suffers_and_nobody_twice_at_once() {
        for seed in 0..50 {
            let actions = five_minutes(seed);
            let targets: BTreeSet<Target> = actions.iter().map(|a| a.target).collect();
            assert_eq!(targets.len(), 7, "{targets:?}");
            for target in targets {
                let own: Vec<&Action> = actions.iter().filter(|a| a.target == target).collect();
                assert!(own.windows(2).all(|w| w[0].at + w[0].lasts + REST <= w[1].at));
            }
        }
    }

    #[test]
    fn each_replica_suffers_also_when_few_things_are_done() {
        let actions = plan(1, 4, 2, Duration::ZERO, Duration::from_secs(20));
        for number in 0..2 {
            assert!(actions.iter().any(|action| action.target == Target::Correlator(number)), "{actions:?}");
        }
    }

    #[test]
    fn what_is_put_back_lets_the_steps_of_others_go_first() {
        let second = |action: &mut Action, at| {
            (action.at, action.lasts) = (Duration::from_secs(at), Duration::from_millis(50))
        };
        let mut actions = five_minutes(1)[..2].to_vec();
        second(&mut actions[0], 8);
        second(&mut actions[1], 8);
        let mut steps = steps(&actions);
        assert_eq!(steps.pop_front(), Some((Duration::from_secs(8), 0, Step::Begin)));
        put_back(&mut actions, &mut steps, 0);
        let order: Vec<(usize, Step)> = steps.iter().map(|(_, number, step)| (*number, *step)).collect();
        assert_eq!(order, [(1, Step::Begin), (1, Step::End), (0, Step::Begin), (0, Step::End)]);
        assert_eq!((steps[2].0, steps[3].0), (actions[0].at, actions[0].at + actions[0].lasts));
        assert_eq!(actions[0].at, Duration::from_secs(8) + REST);
    }

    #[test]
    fn the_same_seed_gives_the_same_actions() {
        assert_eq!(five_minutes(7), five_minutes(7));
        assert_ne!(five_minutes(7), five_minutes(8));
    }
}
