//! Checks that the types of a pattern cannot express.

use super::pattern::{Pattern, SymptomSpec};
use super::template::Template;

/// Categories of causes.
const CATEGORIES: [&str; 20] = [
    "cpu",
    "memory",
    "storage",
    "network",
    "dns",
    "code",
    "config",
    "image",
    "scheduling",
    "admission",
    "quota",
    "credentials",
    "certificate",
    "dependency",
    "node",
    "runtime",
    "controlplane",
    "rollout",
    "probe",
    "tapio",
];
/// Names every template may use.
const TEMPLATE_ROOTS: [&str; 3] = ["seat", "forecast", "change"];

/// What is wrong and a word of the line it is on.
#[derive(Debug)]
pub struct Fault {
    pub key: &'static str,
    pub reason: String,
}

type Check = Result<(), Fault>;

fn ensure(holds: bool, key: &'static str, reason: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(Fault { key, reason: reason() }) }
}

/// Refuses a pattern that cannot mean what it says.
pub fn check(pattern: &Pattern) -> Check {
    let (category, name) = pattern.id.split_once('.').unwrap_or(("", ""));
    ensure(CATEGORIES.contains(&category) && !name.is_empty(), "id", || {
        format!("`{}` is not `<category>.<name>`; categories: {}", pattern.id, CATEGORIES.join(" "))
    })?;
    ensure(pattern.prior > 0.0 && pattern.prior < 0.5, "prior", || {
        format!("prior {} must be above 0 and below 0.5", pattern.prior)
    })?;
    ensure(
        pattern
            .unfelt_max
            .is_none_or(|most| most > 0.0 && most < 1.0 && pattern.symptoms.iter().any(|s| s.felt)),
        "unfelt_max",
        || "`unfelt_max` is above 0 and below 1, and at least one symptom is `felt`".to_owned(),
    )?;
    ensure(!pattern.sits_on.is_empty(), "sits_on", || "name at least one kind in `sits_on`".to_owned())?;
    ensure(!pattern.symptoms.is_empty(), "symptoms", || "a cause without symptoms is never seen".to_owned())?;
    ensure(!pattern.title.is_empty(), "title", || "give at least one title".to_owned())?;
    ensure(!pattern.story.what.is_empty(), "what", || "say what happened in at least one way".to_owned())?;
    ensure(!pattern.cases.is_empty(), "cases", || {
        "give at least one case: it is the pattern's test".to_owned()
    })?;
    pattern.symptoms.iter().try_for_each(symptom)?;
    for change in &pattern.changes {
        ensure(change.factor >= 1.0, "factor", || {
            format!("a change's factor is 1 or more, not {}", change.factor)
        })?;
    }
    for refuter in &pattern.refuted_by {
        let sound = refuter.factor > 0.0 && refuter.factor < 1.0;
        ensure(sound, "factor", || format!("a refuter's factor is between 0 and 1, not {}", refuter.factor))?;
    }
    for tempered in &pattern.tempered_by {
        let factor = tempered.factor;
        let sound = factor > 0.0 && factor < 1.0;
        ensure(sound, "factor", || format!("a factor that tempers is between 0 and 1, not {factor}"))?;
    }
    for score in [pattern.impact.business_impact, pattern.impact.cascade_risk] {
        ensure((0.0..=1.0).contains(&score), "impact", || format!("impact {score} must be between 0 and 1"))?;
    }
    for action in &pattern.actions {
        let known = ["low", "medium", "high"].contains(&action.risk.as_str());
        ensure(known, "risk", || format!("risk `{}` must be low, medium or high", action.risk))?;
    }
    templates(pattern)
}

fn symptom(symptom: &SymptomSpec) -> Check {
    let probable = symptom.probability > 0.0 && symptom.probability < 1.0;
    ensure(probable, "probability", || {
        format!("probability {} of {} must be between 0 and 1", symptom.probability, symptom.signal)
    })?;
    ensure((0.0..=3.0).contains(&symptom.weight), "weight", || {
        format!("weight {} of {} must be between 0 and 3", symptom.weight, symptom.signal)
    })?;
    if let Some((from, to)) = symptom.lag {
        ensure(from <= to, "lag", || format!("lag of {} ends before it begins", symptom.signal))?;
    }
    Ok(())
}

fn templates(pattern: &Pattern) -> Check {
    let story = &pattern.story;
    let actions = pattern.actions.iter().flat_map(|a| [&a.title, &a.command].into_iter().chain(&a.undo));
    let all: Vec<&Template> = pattern
        .title
        .iter()
        .chain(&story.what)
        .chain(&story.why)
        .chain(&story.unopposed)
        .chain(&story.next)
        .chain(actions)
        .collect();
    let named = |root: &str| {
        let mut names =
            pattern.symptoms.iter().map(|s| &s.name).chain(pattern.changes.iter().map(|c| &c.name));
        names.any(|name| name.as_deref() == Some(root))
    };
    for template in all {
        let unknown = template.roots().find(|root| !TEMPLATE_ROOTS.contains(root) && !named(root));
        if let Some(root) = unknown {
            let reason = format!(
                "`{}` names `{root}`, which no symptom or change declares with `as:`; known: {}",
                template.source(),
                TEMPLATE_ROOTS.join(", ")
            );
            return Err(Fault { key: "{", reason });
        }
    }
    for refuter in &pattern.refuted_by {
        let unknown = refuter.says.roots().find(|root| !["seat", "signal"].contains(root));
        if let Some(root) = unknown {
            let reason =
                format!("`{}` names `{root}`; a refuter knows `seat` and `signal`", refuter.says.source());
            return Err(Fault { key: "says", reason });
        }
    }
    for tempered in &pattern.tempered_by {
        let unknown = tempered.says.roots().find(|root| !["seat", "share"].contains(root));
        if let Some(root) = unknown {
            let source = tempered.says.source();
            let reason = format!("`{source}` names `{root}`; what tempers knows `seat` and `share`");
            return Err(Fault { key: "says", reason });
        }
    }
    Ok(())
}
