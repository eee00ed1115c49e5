//! CEL predicates over a signal, its place and the moment.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value};
use serde::Deserialize;
use tapio_schemas::entity::Entity;
use tapio_schemas::{AttributeValue, Signal};

/// Variables a predicate may use.
const VARIABLES: [&str; 3] = ["signal", "seat", "context"];

/// The standard functions; building them costs more than any predicate.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled predicate. Evaluation never fails: an error (a key that is not there) is `false`.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Predicate {
    source: String,
    program: Program,
}

/// What is known beside the signal when a predicate is asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts {
    /// Seconds of event time since the cause's first sign.
    pub elapsed_s: f64,
    /// Somebody is known to call the seat.
    pub has_callers: bool,
    /// The processor of the seat was measured and found normal so long after the first sign; 0 when it was not.
    pub cpu_normal_s: f64,
    /// Kernel events have been seen from the seat's machine (or from anywhere, when it has none).
    pub kernel_seen: bool,
    /// The time at which the forecast would have come true is over.
    pub forecast_passed: bool,
}

impl TryFrom<String> for Predicate {
    type Error = String;

    fn try_from(source: String) -> Result<Self, String> {
        let program =
            Program::compile(&source).map_err(|e| format!("predicate `{source}` does not compile: {e}"))?;
        let unknown =
            program.references().variables().into_iter().find(|v| !VARIABLES.contains(v)).map(str::to_owned);
        match unknown {
            Some(name) => Err(format!(
                "predicate `{source}` uses `{name}`, which does not exist; use {}",
                VARIABLES.join(", ")
            )),
            None => Ok(Self { source, program }),
        }
    }
}

impl Predicate {
    /// The text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// True when it holds. `signal` may be absent (for predicates about absence).
    pub fn holds(&self, signal: Option<&Signal>, seat: &Entity, facts: &Facts) -> bool {
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        if let Some(signal) = signal {
            context.add_variable_from_value("signal", signal_value(signal));
        }
        context.add_variable_from_value("seat", entity_value(seat));
        context.add_variable_from_value(
            "context",
            map([
                ("elapsed_s", Value::Float(facts.elapsed_s)),
                ("cpu_normal_s", Value::Float(facts.cpu_normal_s)),
                ("has_callers", Value::Bool(facts.has_callers)),
                ("kernel_seen", Value::Bool(facts.kernel_seen)),
                ("forecast_passed", Value::Bool(facts.forecast_passed)),
            ]),
        );
        matches!(self.program.execute(&context), Ok(Value::Bool(true)))
    }
}

fn map<'a>(pairs: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let pairs: HashMap<String, Value> = pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Value::Map(pairs.into())
}

fn text(text: &str) -> Value {
    Value::from(text)
}

fn entity_value(entity: &Entity) -> Value {
    map([
        ("kind", text(&entity.kind)),
        ("namespace", text(&entity.namespace)),
        ("name", text(&entity.name)),
        ("node", text(&entity.node)),
    ])
}

fn signal_value(signal: &Signal) -> Value {
    let attributes = signal.attributes.iter().map(|a| (a.key.as_str(), attribute_value(&a.value)));
    let mut pairs = vec![
        ("kind", text(signal.kind.as_str())),
        ("strength", Value::Float(signal.strength.get())),
        ("count", Value::Int(i64::try_from(signal.count).unwrap_or(i64::MAX))),
        ("lasted_s", Value::Float(signal.last_seen.since(signal.onset) as f64 / 1e9)),
        ("pid", Value::Int(i64::from(signal.pid))),
        ("observed", Value::Float(signal.observed)),
        ("baseline", Value::Float(signal.baseline)),
        ("ended", Value::Bool(signal.ended)),
        ("entity", entity_value(&signal.entity.subject())),
        ("attributes", map(attributes)),
    ];
    if let Some(peer) = &signal.peer {
        pairs.push(("peer", entity_value(peer)));
    }
    map(pairs)
}

fn attribute_value(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::Bool(v) => Value::Bool(*v),
        AttributeValue::Int(v) => Value::Int(*v),
        AttributeValue::Double(v) => Value::Float(*v),
        AttributeValue::Text(v) => text(v),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::{Attribute, EntityRef, SignalKind, UnixNanos};

    fn kill() -> Signal {
        let entity = Arc::new(EntityRef { node: "n1".into(), cgroup: "/a".into(), ..Default::default() });
        let mut signal = Signal::new(SignalKind::OomKill, entity, None, UnixNanos(1));
        signal.attributes = vec![Attribute::new("comm", "python3"), Attribute::new("signal", 9)];
        signal
    }

    fn holds(source: &str) -> bool {
        let predicate = Predicate::try_from(source.to_owned()).unwrap();
        let seat = Entity::new("Cgroup", "", "/a", "n1");
        predicate.holds(Some(&kill()), &seat, &Facts { elapsed_s: 3.0, ..Facts::default() })
    }

    #[test]
    fn predicates_see_signal_seat_and_context() {
        assert!(holds("signal.attributes.comm == 'python3' && signal.attributes.signal == 9"));
        assert!(holds("signal.strength >= 0.5 && signal.count == 1"));
        assert!(holds("seat.kind == 'Cgroup' && context.elapsed_s < 5.0"));
        assert!(holds("!has(signal.attributes.exit_code)"));
        assert!(!holds("signal.attributes.comm == 'java'"));
    }

    #[test]
    fn a_missing_key_is_false_and_an_unknown_variable_an_error() {
        assert!(!holds("signal.attributes.nothing == 1"));
        let fault = Predicate::try_from("event.kind == 'x'".to_owned()).unwrap_err();
        assert!(fault.contains("`event`"), "{fault}");
        assert!(Predicate::try_from("signal.kind ==".to_owned()).is_err());
    }
}
