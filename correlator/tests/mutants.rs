//! The mutation check over the whole library: every discriminator earns its place, or it goes.

use std::path::Path;
use std::sync::Arc;

use tapio_correlator::model::Model;
use tapio_correlator::trial;

#[test]
fn without_any_one_discriminator_some_case_fails() {
    let surveys = trial::surveys(&Arc::new(Model::builtin().unwrap())).unwrap();
    let unnoticed: Vec<String> = surveys
        .iter()
        .flat_map(|survey| survey.unnoticed.iter().map(|what| format!("{}: {what}", survey.pattern)))
        .collect();
    assert!(unnoticed.is_empty(), "nothing needs these discriminators:\n{}", unnoticed.join("\n"));
    let noticed: usize = surveys.iter().map(|survey| survey.noticed.len()).sum();
    assert!(noticed >= 131, "only {noticed} discriminators were taken away");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/mutations.md");
    let current = std::fs::read_to_string(&page).unwrap_or_default();
    let written = trial::mutations_page(&surveys);
    assert!(written == current, "docs/mutations.md is old; run `make mutations`");
}
