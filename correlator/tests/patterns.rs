//! Every pattern's own cases, and what happens to patterns that are wrong.

use std::sync::Arc;

use tapio_correlator::incidents::{IncidentConfig, IncidentEngine};
use tapio_correlator::model::{Case, Expectation, Model, ModelError, Pattern};
use tapio_correlator::trial;
use tapio_schemas::Finding;
use tapio_schemas::wire::SignalSection;

fn verdicts(model: &Arc<Model>, pattern: &Pattern, case: &Case) -> Vec<Finding> {
    trial::verdicts(model, pattern, case).unwrap_or_else(|fault| panic!("{fault}"))
}

#[test]
fn every_case_of_every_pattern_gets_its_verdict() {
    let model = Arc::new(Model::builtin().unwrap());
    let mut report = String::new();
    let mut cases = 0;
    for pattern in model.patterns() {
        for case in &pattern.cases {
            cases += 1;
            let findings = verdicts(&model, pattern, case);
            let wrong = trial::differences(pattern, &case.expect, &findings);
            if !wrong.is_empty() {
                report.push_str(&format!("{} / {}: {}\n", pattern.id, case.name, wrong.join(", ")));
                for finding in &findings {
                    report.push_str(&format!("{}\n", serde_json::to_string_pretty(finding).unwrap()));
                }
            }
        }
    }
    assert!(report.is_empty(), "{report}");
    assert!(cases >= 40, "only {cases} cases ran");
}

#[test]
fn every_cause_has_a_positive_case_a_look_alike_and_a_recovery() {
    for pattern in Model::builtin().unwrap().patterns() {
        let expects = |fits: &dyn Fn(&Expectation) -> bool| pattern.cases.iter().any(|c| fits(&c.expect));
        assert!(expects(&|e| e.cause.as_ref() == Some(&pattern.id) && e.above.is_some()), "{}", pattern.id);
        assert!(
            expects(&|e| e.cause.as_ref() != Some(&pattern.id)
                || e.at_most.is_some()
                || e.findings == Some(0)),
            "{} has no look-alike",
            pattern.id
        );
        let recovered = tapio_schemas::finding::Status::Recovered;
        assert!(expects(&|e| e.status == Some(recovered)), "{} has no recovery", pattern.id);
    }
}

#[test]
fn the_order_of_sections_does_not_matter() {
    let model = Arc::new(Model::builtin().unwrap());
    for pattern in model.patterns() {
        for case in &pattern.cases {
            let forwards = verdicts(&model, pattern, case);
            let mut section = case.section(&pattern.entities).unwrap();
            section.signals.reverse();
            let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::clone(&model));
            engine.learn(case.states(&pattern.entities).unwrap());
            for signal in section.signals.drain(..) {
                engine.apply(SignalSection { signals: vec![signal], ..SignalSection::default() });
            }
            engine.apply(section);
            let mut backwards: Vec<Finding> = Vec::new();
            for finding in engine.finish(case.verdict_at()) {
                backwards.retain(|known| known.id != finding.id);
                backwards.push(finding);
            }
            backwards.sort_by_key(|f| f.id);
            let mut forwards = forwards;
            forwards.sort_by_key(|f| f.id);
            assert_eq!(forwards, backwards, "{} / {}", pattern.id, case.name);
        }
    }
}

#[test]
fn patterns_on_disk_are_those_in_the_program() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("patterns");
    let loaded = Model::load_dir(&directory).unwrap();
    let ids = |model: &Model| model.patterns().iter().map(|p| p.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&loaded), ids(&Model::builtin().unwrap()));
    assert!(loaded.patterns().len() >= 10);
}

#[test]
fn the_page_of_all_patterns_is_current() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/patterns.md");
    let written = std::fs::read_to_string(&page).unwrap_or_default();
    let current = tapio_correlator::model::reference(&Model::builtin().unwrap());
    assert!(written == current, "docs/patterns.md is old; run `tapio patterns docs > docs/patterns.md`");
}

#[test]
fn a_discriminator_that_nothing_needs_is_found() {
    let model = Arc::new(Model::builtin().unwrap());
    let pattern = model.pattern("quota.exceeded").unwrap();
    let needless = pattern.source.replace(
        "story:",
        "refuted_by: [{ signal: tapio.lag, on: self, factor: 0.5, says: \"no\" }]\nstory:",
    );
    let needless = Model::parse_one("own.yaml", &needless).unwrap();
    let found = trial::survey(&model, &needless).unwrap();
    assert_eq!(found.unnoticed, ["refuted_by[0] tapio.lag"]);
    let needed = trial::survey(&model, model.pattern("probe.kills_healthy").unwrap()).unwrap();
    assert!(!needed.noticed.is_empty());
}

const SOUND: &str = include_str!("../patterns/cpu.throttling.yaml");

/// Error of the pattern after `from` was replaced by `to`.
fn fault(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "`{from}` is not in the pattern");
    let error = Model::parse([("own.yaml", SOUND.replacen(from, to, 1).as_str())]).unwrap_err();
    assert!(matches!(error, ModelError::Invalid { .. }));
    error.to_string()
}

#[test]
fn errors_name_file_line_and_reason() {
    let unknown = fault("prior: 0.25", "prior: 0.25\npriority: 7");
    assert!(unknown.starts_with("own.yaml:") && unknown.contains("priority"), "{unknown}");
    let signal = fault("signal: cpu.pressure", "signal: cpu.stress");
    assert!(signal.contains("cpu.stress") && !signal.starts_with("own.yaml:0:"), "{signal}");
    let cel = fault("seat.kind == 'SystemdUnit'", "seat.kind = 'SystemdUnit'");
    assert!(cel.contains("does not compile"), "{cel}");
    let variable = fault("seat.kind == 'SystemdUnit'", "event.kind == 'SystemdUnit'");
    assert!(variable.contains("`event`"), "{variable}");
    let template = fault("{slow.since|time}", "{fast.since|time}");
    assert!(template.contains("`fast`"), "{template}");
    let category = fault("id: cpu.throttling", "id: throttling");
    assert!(category.contains("<category>.<name>") && category.starts_with("own.yaml:2:"), "{category}");
    assert!(fault("prior: 0.25", "prior: 1.5").contains("prior 1.5"));
    assert!(fault("probability: 0.95", "probability: 2").contains("probability 2"));
}

#[test]
fn a_cause_is_defined_once_and_a_directory_must_exist() {
    let twice = Model::parse([("a.yaml", SOUND), ("b.yaml", SOUND)]).unwrap_err().to_string();
    assert!(twice.starts_with("b.yaml:") && twice.contains("twice"), "{twice}");
    let nowhere = Model::load_dir(std::path::Path::new("/no/such/directory")).unwrap_err().to_string();
    assert!(nowhere.contains("/no/such/directory"), "{nowhere}");
}
