//! The mutation check over the whole library: every discriminator earns its place, or it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tapio_correlator::model::Model;
use tapio_correlator::trial::{self, Survey};

/// Surveys of all patterns, each by whoever is free.
fn surveys(model: &Arc<Model>) -> Vec<Survey> {
    let next = AtomicUsize::new(0);
    let survey_some = || {
        let mut found = Vec::new();
        while let Some(pattern) = model.patterns().get(next.fetch_add(1, Ordering::Relaxed)) {
            found.push(trial::survey(model, pattern).unwrap());
        }
        found
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let working: Vec<_> = (0..workers).map(|_| scope.spawn(survey_some)).collect();
        working.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

#[test]
fn without_any_one_discriminator_some_case_fails() {
    let surveys = surveys(&Arc::new(Model::builtin().unwrap()));
    let unnoticed: Vec<String> = surveys
        .iter()
        .flat_map(|survey| survey.unnoticed.iter().map(|what| format!("{}: {what}", survey.pattern)))
        .collect();
    assert!(unnoticed.is_empty(), "nothing needs these discriminators:\n{}", unnoticed.join("\n"));
    let noticed: usize = surveys.iter().map(|survey| survey.noticed.len()).sum();
    assert!(noticed >= 131, "only {noticed} discriminators were taken away");
}
