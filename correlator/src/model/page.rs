//! Patterns as a page for people (`docs/patterns.md`).

use std::fmt::Write as _;

use super::pattern::{Pattern, Relation, SignedDuration, SymptomSpec};
use super::{Model, ModelError, Template, Tiers, duration};

/// All patterns of a model as one page of Markdown.
pub fn reference(model: &Model) -> String {
    let cases: usize = model.patterns().iter().map(|p| p.cases.len()).sum();
    let mut out = format!(
        "# Patterns\n\nThe {} causes that come with tapio, made by `tapio patterns docs` from `correlator/patterns/` \
         ({cases} cases). How a file is made: `correlator/patterns/README.md`.\n\n*Seen by*: `lists` are those that \
         `tapio check` asks a cluster for, `dump` is `kubectl cluster-info dump` (`dump with …`: one that has these kinds \
         as well), `running` is the installed system. It stands where all that a cause requires and a sign that says \
         something by itself arrive.\n\n| cause | on | first sign | seen by |\n|---|---|---|---|\n",
        model.patterns().len()
    );
    for pattern in model.patterns() {
        let signs: Vec<&str> =
            pattern.symptoms.iter().filter(|s| s.on == Relation::Itself).map(|s| s.signal.as_str()).fold(
                Vec::new(),
                |mut all, one| {
                    if !all.contains(&one) && all.len() < 3 {
                        all.push(one);
                    }
                    all
                },
            );
        let anchor = pattern.id.replace('.', "");
        let _ = writeln!(
            out,
            "| [{}](#{anchor}) | {} | {} | {} |",
            pattern.id,
            pattern.sits_on.join(", "),
            signs.join(", "),
            Tiers::of(pattern).words()
        );
    }
    for pattern in model.patterns() {
        out.push('\n');
        out.push_str(&page(pattern));
    }
    out
}

/// One pattern as its file has it.
///
/// # Errors
/// When its source is none, as that of a pattern which was not read from a file.
pub fn document(pattern: &Pattern) -> Result<serde_json::Value, ModelError> {
    serde_norway::from_str(&pattern.source).map_err(|e| ModelError::yaml(&pattern.file, &e))
}

/// One pattern as Markdown.
pub fn page(pattern: &Pattern) -> String {
    let mut out = format!("## {}\n\n", pattern.id);
    for line in pattern.source.lines().map_while(|line| line.strip_prefix('#')) {
        let _ = writeln!(out, "{}", line.trim());
    }
    let _ = writeln!(out, "\nOn {}. Prior {}.", pattern.sits_on.join(", "), pattern.prior);
    list(&mut out, "Symptoms", pattern.symptoms.iter().map(symptom));
    let changes = pattern.changes.iter().map(|c| {
        let within = duration(c.within.get().as_secs_f64());
        format!("`{}` on {} within {within}: odds × {}", c.signal, place(c.on), c.factor)
    });
    list(&mut out, "Changes that speak for it", changes);
    let refuters = pattern.refuted_by.iter().map(|r| {
        let when = r.when.as_ref().map(|w| format!(" when `{}`", w.source())).unwrap_or_default();
        format!("`{}` on {}{when}: odds × {}", r.signal, place(r.on), r.factor)
    });
    let tempered =
        pattern.tempered_by.iter().map(|t| format!("{} (odds × {} at most)", plain(&t.says), t.factor));
    list(&mut out, "Refuted by", refuters.chain(tempered));
    let actions = pattern.actions.iter().map(|a| {
        let undo = a.undo.as_ref().map(|u| format!("; undo `{}`", u.source())).unwrap_or_default();
        format!("{} (risk {}): `{}`{undo}", plain(&a.title), a.risk, a.command.source())
    });
    list(&mut out, "Actions", actions);
    list(&mut out, "References", pattern.references.iter().map(|r| format!("<{r}>")));
    list(&mut out, "Cases", pattern.cases.iter().map(|c| c.name.clone()));
    out
}

fn list(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let mut lines = lines.peekable();
    if lines.peek().is_some() {
        let _ = writeln!(out, "\n{title}:\n");
        for line in lines {
            let _ = writeln!(out, "- {line}");
        }
    }
}

fn plain(template: &Template) -> String {
    template.source().to_owned()
}

fn place(on: Relation) -> &'static str {
    match on {
        Relation::Itself => "self",
        Relation::Caller => "caller",
        Relation::Upstream => "upstream",
        Relation::Callee => "callee",
        Relation::Node => "node",
        Relation::Hosted => "hosted",
        Relation::Mounter => "mounter",
        Relation::Mounted => "mounted",
    }
}

fn symptom(symptom: &SymptomSpec) -> String {
    let mut text = format!("`{}` on {}: {}", symptom.signal, place(symptom.on), symptom.probability);
    if let Some((from, to)) = symptom.lag {
        let _ = write!(text, ", {} to {}", lag(from), lag(to));
    }
    if !symptom.after.is_empty() {
        let leaders: Vec<&str> = symptom.after.iter().map(|kind| kind.as_str()).collect();
        let _ = write!(text, " after {}", leaders.join(" or "));
    }
    if let Some(when) = &symptom.when {
        let _ = write!(text, ", when `{}`", when.source());
    }
    if symptom.required {
        text.push_str(", required");
    }
    if symptom.vital {
        text.push_str(", vital");
    }
    text
}

fn lag(lag: SignedDuration) -> String {
    let seconds = lag.0 as f64 / 1e9;
    if seconds < 0.0 { format!("-{}", duration(-seconds)) } else { duration(seconds) }
}
