//! The accuracy harness on a recording of our own: a known right answer, a known miss, and a stretch that is healthy.

mod common;

use std::path::Path;

use common::{run, stderr, stdout};
use serde_json::{Value, json};
use tempfile::TempDir;

const RECORDING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recordings/memory-leak.jsonl.zst");
const LEAKING: &str = "/tapio-demo-28845";

/// A directory of three cases, all made of the one recording.
fn cases() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = |name: &str, cause: &str| json!({"kind": "Cgroup", "name": name, "cause": cause});
    let packed = std::fs::read(RECORDING).unwrap();
    let lines = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
    for (case, wanted) in [("a-right", LEAKING), ("b-miss", "/another")] {
        std::fs::write(dir.path().join(format!("{case}.jsonl.zst")), &packed).unwrap();
        label(dir.path(), case, &json!({"verdict": "active", "root_causes": [root(wanted, "memory.leak")]}));
    }
    let calm: Vec<&str> = lines.lines().take(8).collect();
    std::fs::write(dir.path().join("c-healthy.jsonl"), calm.join("\n")).unwrap();
    label(dir.path(), "c-healthy", &json!({"verdict": "healthy", "root_causes": []}));
    dir
}

fn label(dir: &Path, case: &str, label: &Value) {
    std::fs::create_dir_all(dir.join("labels")).unwrap();
    std::fs::write(dir.join("labels").join(format!("{case}.json")), label.to_string()).unwrap();
}

fn report(args: &[&str]) -> Value {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    serde_json::from_str(&stdout(&output)).unwrap()
}

#[test]
fn a_right_answer_a_miss_and_a_healthy_stretch_are_told_apart() {
    let dir = cases();
    let said = tempfile::tempdir().unwrap();
    let (cases, said) = (dir.path().to_str().unwrap(), said.path().to_str().unwrap());
    let whole = report(&["accuracy", cases, "--twice", "--output", "json", "--findings", said]);
    let right = |case: usize| whole["cases"][case]["right"].clone();
    assert_eq!(right(0), json!([1.0, 1.0, 1.0]), "{whole}");
    assert_eq!(right(1), json!([0.0, 1.0, 0.0]), "the category is right, the place is not: {whole}");
    assert_eq!(whole["spared"], json!([1, 1]), "{whole}");
    let row = &whole["rows"][0];
    assert_eq!((&row["cases"], &row["answered"]), (&json!(2), &json!(2)), "what is healthy is not asked");
    assert_eq!((&row["both"][0], &row["false_findings"]), (&json!(0.5), &json!(1)));
    assert!(whole["speed"]["least"].as_f64().unwrap() > 1.0);

    let again = report(&["accuracy", cases, "--score", said, "--output", "json"]);
    assert_eq!((&again["rows"], &again["calibration"]), (&whole["rows"], &whole["calibration"]));
}

#[test]
fn a_method_to_compare_with_answers_too() {
    let dir = cases();
    for method in ["earliest", "loudest"] {
        let report =
            report(&["accuracy", dir.path().to_str().unwrap(), "--method", method, "--output", "json"]);
        assert_eq!(report["rows"][0]["answered"], json!(2), "{method}: {report}");
        assert_eq!(
            report["cases"][0]["named"],
            json!(format!("memory.blamed on {LEAKING}")),
            "{method}: {report}"
        );
    }
}

#[test]
fn the_figures_go_into_a_page_between_its_marks() {
    let dir = cases();
    let page = dir.path().join("page.md");
    let marks =
        "# Page\n<!-- figures: begin (written by tapio accuracy --write) -->\n<!-- figures: end -->\nend\n";
    std::fs::write(&page, marks).unwrap();
    let output = run(&["accuracy", dir.path().to_str().unwrap(), "--write", page.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.starts_with("# Page\n") && text.ends_with("end\n"), "{text}");
    for said in ["| a-right | memory.leak |", "| loudest entity |", "leaving out each of 2 services"] {
        assert!(text.contains(said), "{said} is missing: {text}");
    }
}

#[test]
fn a_case_without_its_recording_is_named() {
    let dir = cases();
    std::fs::remove_file(dir.path().join("b-miss.jsonl.zst")).unwrap();
    let output = run(&["accuracy", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("b-miss"), "{}", stderr(&output));
}
