//! What the manager says of a unit: the few of its properties that matter here.
//!
//! The manager sends the properties of the unit's type first, then those every unit has, each set as it is at
//! the moment of sending. States between two sendings are not seen; `NRestarts` tells that there were some.

use std::collections::HashMap;

use smol_str::SmolStr;
use tapio_schemas::ids::UnixNanos;
use zbus::OwnedVariant;

use crate::convert::cut;

/// Interface that every unit has.
pub const UNIT_INTERFACE: &str = "org.freedesktop.systemd1.Unit";
/// Path below which the units are.
const UNIT_PATH: &str = "/org/freedesktop/systemd1/unit/";
/// Longest text kept of a property.
const TEXT_MAX: usize = 256;

/// Values by name, as D-Bus tells them.
pub type Values = HashMap<String, OwnedVariant>;

/// State of a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnitState {
    /// `ActiveState`: `active`, `failed`, …
    pub active: SmolStr,
    /// `SubState`: `running`, `auto-restart`, …
    pub sub: SmolStr,
    /// Which run it is: when it left `inactive`, and when its main process was started, in microseconds since the
    /// boot. The manager's own `InvocationID` is not among what it sends.
    pub run: (u64, u64),
    /// `StateChangeTimestamp`; zero when unknown.
    pub changed_at: UnixNanos,
    /// `InactiveEnterTimestamp`: when it failed or stopped; zero when unknown.
    pub ended_at: UnixNanos,
    /// `Result`: `success`, `exit-code`, …; empty for types that have none.
    pub result: SmolStr,
    /// `ExecMainStatus`: exit code, or number of the signal.
    pub status: i32,
    /// `ExecMainPID`.
    pub pid: u32,
    /// `NRestarts`.
    pub restarts: u32,
}

impl UnitState {
    /// Takes over what `values` has, and leaves the rest.
    pub fn update(&mut self, values: &Values) {
        let text = |name| values.get(name).and_then(|v| <&str>::try_from(v).ok()).map(|t| cut(t, TEXT_MAX));
        let unsigned = |name| values.get(name).and_then(|v| u32::try_from(v).ok());
        set(&mut self.active, text("ActiveState"));
        set(&mut self.sub, text("SubState"));
        set(&mut self.result, text("Result"));
        set(&mut self.status, values.get("ExecMainStatus").and_then(|v| i32::try_from(v).ok()));
        set(&mut self.pid, unsigned("ExecMainPID"));
        set(&mut self.restarts, unsigned("NRestarts"));
        let micros = |name| values.get(name).and_then(|v| u64::try_from(v).ok());
        let time = |name| micros(name).map(|micros| UnixNanos(micros.saturating_mul(1000)));
        set(&mut self.changed_at, time("StateChangeTimestamp"));
        set(&mut self.ended_at, time("InactiveEnterTimestamp"));
        set(&mut self.run.0, micros("InactiveExitTimestampMonotonic"));
        set(&mut self.run.1, micros("ExecMainStartTimestampMonotonic"));
    }

    /// Whether it is up.
    pub fn is_active(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading" | "refreshing")
    }

    /// Whether it ended with an error and waits to be started again by itself.
    pub fn waits_for_restart(&self) -> bool {
        self.sub.starts_with("auto-restart") && !self.succeeded()
    }

    /// Whether the last run ended well, as far as the unit's type tells.
    pub fn succeeded(&self) -> bool {
        matches!(self.result.as_str(), "" | "success")
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Name of the unit at an object path; none for other objects.
pub fn unit_of_path(path: &str) -> Option<SmolStr> {
    let label = path.strip_prefix(UNIT_PATH)?;
    let mut name = Vec::with_capacity(label.len());
    let mut rest = label.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'_', Some(byte)) => {
                name.push(byte);
                rest = &after[2..];
            }
            _ => {
                name.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(name).ok().map(SmolStr::from)
}

/// Interface of the properties that a unit has by its type: `…Service` for `x.service`.
pub fn interface_of(unit: &str) -> Option<String> {
    let (_, suffix) = unit.rsplit_once('.')?;
    let mut letters = suffix.chars();
    let first = letters.next()?.to_ascii_uppercase();
    Some(format!("org.freedesktop.systemd1.{first}{}", letters.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::Variant;

    #[test]
    fn paths_are_names() {
        let name = |path: &str| unit_of_path(path);
        let path = "/org/freedesktop/systemd1/unit/user_401000_2eservice";
        assert_eq!(name(path).as_deref(), Some("user@1000.service"));
        assert_eq!(name("/org/freedesktop/systemd1/unit/a_2dÿ").as_deref(), Some("a-ÿ"));
        assert_eq!(name("/org/freedesktop/systemd1/unit/a_").as_deref(), Some("a_"));
        assert_eq!(name("/org/freedesktop/systemd1/unit/_ff"), None, "not text");
        assert_eq!(name("/org/freedesktop/systemd1"), None);
        assert_eq!(interface_of("a.b.mount").as_deref(), Some("org.freedesktop.systemd1.Mount"));
    }

    #[test]
    fn values_of_the_wrong_type_are_left_out() {
        let value = |v: Variant<'_>| OwnedVariant::try_from(v).unwrap();
        let values: Values = [
            ("ActiveState", value("failed".into())),
            ("Result", value(7_u32.into())),
            ("ExecMainStatus", value(3_i32.into())),
            ("ExecMainStartTimestampMonotonic", value(9_u64.into())),
            ("InactiveExitTimestampMonotonic", value("soon".into())),
            ("StateChangeTimestamp", value(5_u64.into())),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let mut state = UnitState { result: "success".into(), ..UnitState::default() };
        state.update(&values);
        let expected = UnitState {
            active: "failed".into(),
            result: "success".into(),
            status: 3,
            run: (0, 9),
            changed_at: UnixNanos(5000),
            ..UnitState::default()
        };
        assert_eq!(state, expected);
    }
}
