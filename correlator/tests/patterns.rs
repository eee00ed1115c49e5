//! Every pattern's own cases, and what happens to patterns that are wrong.

use std::sync::Arc;

use tapio_correlator::incidents::{IncidentConfig, IncidentEngine};
use tapio_correlator::model::{Case, Expectation, Model, ModelError, Pattern};
use tapio_schemas::Finding;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::wire::{ShardMark, SignalSection};

/// Last revision of each finding, in the order of their ids' first appearance.
fn verdicts(model: &Arc<Model>, pattern: &Pattern, case: &Case) -> Vec<Finding> {
    let mut engine = IncidentEngine::new(IncidentConfig::default(), Arc::clone(model));
    engine.apply(case.section(&pattern.entities).unwrap_or_else(|fault| panic!("{fault}")));
    engine.apply(SignalSection {
        marks: (0..SHARD_COUNT).map(|shard| ShardMark { shard, epoch: 0, at: case.verdict_at() }).collect(),
        ..SignalSection::default()
    });
    let mut last: Vec<Finding> = Vec::new();
    for finding in engine.advance() {
        match last.iter_mut().find(|known| known.id == finding.id) {
            Some(known) => *known = finding,
            None => last.push(finding),
        }
    }
    last
}

fn failures(pattern: &Pattern, expect: &Expectation, findings: &[Finding]) -> Vec<String> {
    let mut wrong = Vec::new();
    let count = expect.findings.unwrap_or(1);
    if findings.len() != count {
        return vec![format!("{} findings instead of {count}", findings.len())];
    }
    for finding in findings {
        let root = finding.root_cause.as_ref();
        let confidence = finding.confidence.get();
        let seat = expect.seat.as_ref().map(|name| pattern.entities[name].to_ref().owner());
        let below = finding.hypotheses.iter().skip(1).find(|h| Some(&h.cause) == expect.not.as_ref());
        let outcome = finding.prediction.as_ref().and_then(|p| p.outcome.clone());
        let checks = [
            (root.map(|r| &r.cause) == expect.cause.as_ref(), "cause"),
            (seat.is_none() || root.map(|r| r.entity.clone()) == seat, "seat"),
            (expect.status.is_none_or(|s| finding.status == s), "status"),
            (expect.above.is_none_or(|floor| confidence > floor), "confidence too low"),
            (expect.at_most.is_none_or(|ceiling| confidence <= ceiling), "confidence too high"),
            (expect.prediction.is_none() || outcome == expect.prediction, "prediction"),
            (expect.chain.is_none_or(|links| finding.chain.len() == links), "chain"),
            (expect.not.is_none() || below.is_some_and(|h| !h.refuted_by.is_empty()), "refuted alternative"),
            (expect.says.as_ref().is_none_or(|words| finding.story.contains(words)), "words in the story"),
            (expect.silent.as_ref().is_none_or(|words| !finding.story.contains(words)), "words too many"),
            (finding.story.contains("Seen: "), "story without evidence"),
            (!finding.story.contains('{') && !finding.title.contains('{'), "a hole in the story"),
        ];
        wrong.extend(checks.iter().filter(|(holds, _)| !holds).map(|(_, what)| (*what).to_owned()));
    }
    wrong
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
            let wrong = failures(pattern, &case.expect, &findings);
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
