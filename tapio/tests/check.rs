//! What `tapio check` and `tapio why` say, against a real nats-server and a real storage service.

mod common;
mod told;

use std::path::Path;

use common::{data_dir, run, stderr, stdout, wait_for};
use serde_json::{Value, json};
use tapio_runtime::bus::Headers;
use tapio_schemas::Finding;
use told::{SECOND, World, finding, now};

#[test]
fn without_a_correlator_or_with_an_old_watermark_it_cannot_tell() {
    let world = World::start();
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(3), &"not_provable".into()), "{answer}");
    assert!(answer["reason"].as_str().unwrap().contains("no correlator"), "{answer}");

    world.tell_watermark(now().minus(61 * SECOND), &[]);
    // What was read in the last second is given again.
    let answer = wait_for("the watermark", || {
        let (code, answer) = world.check(&[]);
        assert_eq!((code, &answer["verdict"]), (Some(3), &"not_provable".into()), "{answer}");
        (!answer["freshness"]["clusters"].as_array().unwrap().is_empty()).then_some(answer)
    });
    let reason = answer["reason"].as_str().unwrap();
    assert!(reason.starts_with("no event has been judged since 2"), "{reason}");
    assert!(reason.ends_with("is an agent running?"), "{reason}");
    let output = world.ask(&["check"]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(stdout(&output), format!("not provable: {reason}\n"));
}

#[test]
fn a_watermark_that_follows_the_clock_without_events_is_no_health() {
    let world = World::start();
    world.tell_watermark(now(), &[]);
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(3), &"not_provable".into()), "{answer}");
    let expected = "no event has come in the last minute: is an agent running?";
    assert_eq!(answer["reason"], expected);
    world.tell_event();
    wait_for("health", || (world.check(&[]).1["verdict"] == "healthy").then_some(()));
}

#[test]
fn healthy_needs_a_fresh_watermark_and_tells_what_is_lost_and_what_was() {
    let mut world = World::start();
    world.tell_event();
    world.tell_watermark(now(), &["ebpf on node-3 lost 120 events"]);
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(0), &"healthy".into()), "{answer}");
    assert_eq!(answer["freshness"]["gaps"], json!(["ebpf on node-3 lost 120 events"]));
    assert!(answer["freshness"]["age_ms"].as_u64().unwrap() < 60_000, "{answer}");
    assert_eq!(answer["freshness"]["clusters"][0]["cluster"], "prod");
    assert!(answer.get("reason").is_none(), "{answer}");
    let text = stdout(&world.ask(&["check"]));
    assert!(text.starts_with("healthy: nothing is wrong, everything up to "), "{text}");
    assert!(text.contains("\nincomplete: ebpf on node-3"), "{text}");

    let long_ago = Finding { updated_at: now().minus(16 * 60 * SECOND), ..finding(1, "recovered", 0.9) };
    world.publish(&long_ago);
    assert_eq!(world.check(&[]).1["verdict"], "healthy");
    world.publish(&finding(2, "recovered", 0.9));
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(0), &"recovered".into()), "{answer}");
    assert_eq!(answer["findings"], json!([]));
    let text = stdout(&world.ask(&["check"]));
    assert!(text.contains("\nrecovered: ") && text.contains("trouble 2"), "{text}");
    assert!(!text.contains("trouble 1"), "{text}");
}

#[test]
fn what_goes_on_is_told_proven_or_not() {
    let mut world = World::start();
    world.tell_event();
    world.tell_watermark(now(), &[]);
    world.publish(&finding(1, "not_provable", 0.2));
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(2), &"not_provable".into()), "{answer}");
    assert_eq!(answer["findings"][0]["title"], "trouble 1");
    let why = world.ask(&["why", "deployment/api"]);
    assert_eq!(why.status.code(), Some(2));
    assert!(stdout(&why).contains("not provable from the evidence"), "{}", stdout(&why));

    world.publish(&finding(2, "active", 0.5));
    let (code, answer) = world.check(&[]);
    assert_eq!((code, &answer["verdict"]), (Some(2), &"active".into()), "{answer}");
    let titles = |answer: &Value| -> Vec<String> {
        let findings = answer["findings"].as_array().unwrap();
        findings.iter().map(|finding| finding["title"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(titles(&answer), ["trouble 2", "trouble 1"]);
    // Kinds as kubectl takes them mean the same: nothing broken is called healthy for how it is written.
    for written in ["deploy/api", "shop/deployments/api", "deployment.apps/api"] {
        let (code, answer) = world.check(&["-n", "shop", written]);
        assert_eq!((code, titles(&answer).len()), (Some(2), 2), "{written}: {answer}");
        assert_eq!(world.ask(&["why", written]).status.code(), Some(2), "{written}");
    }
    let (code, answer) = world.check(&["deployment/other"]);
    assert_eq!((code, &answer["verdict"]), (Some(0), &"healthy".into()), "{answer}");

    // What is not proven is found where it is thought to be, as when lists are asked.
    let mut guessed = finding(3, "not_provable", 0.2);
    guessed.chain[0].entity.kind = "Pod".into();
    guessed.chain[0].entity.name = "a-pod".into();
    guessed.hypotheses = serde_json::from_value(json!([{"cause": "memory.leak", "probability": 0.4,
        "entity": {"kind": "Deployment", "namespace": "shop", "name": "guessed"}}]))
    .unwrap();
    world.publish(&guessed);
    let (code, answer) = world.check(&["deploy/guessed"]);
    assert_eq!((code, titles(&answer)), (Some(2), vec!["trouble 3".to_owned()]), "{answer}");
    world.publish(&Finding { revision: 2, status: tapio_schemas::finding::Status::Recovered, ..guessed });

    // It ends: the same finding with a later revision.
    for number in [1, 2] {
        world.publish(&Finding { revision: 2, ..finding(number, "recovered", 0.2) });
    }
    assert_eq!(world.check(&[]).1["verdict"], "healthy");
}

#[test]
fn more_than_a_screen_is_counted_and_nothing_is_left_out_of_the_pages() {
    const COUNT: u64 = 620;
    let mut world = World::start();
    world.tell_event();
    world.tell_watermark(now(), &[]);
    for number in 1..=COUNT {
        let confidence = if number % 2 == 0 { 0.9 } else { 0.5 };
        let finding = finding(number, "active", confidence);
        let (subject, payload) = (finding.subject(), serde_json::to_vec(&finding).unwrap());
        let publish = world.bus.publish(&subject, None, Headers::new(), payload.into());
        world.runtime.block_on(publish).unwrap();
        world.published += 1;
    }
    world.publish(&finding(COUNT + 1, "active", 0.9));
    let (code, answer) = world.check(&[]);
    assert_eq!(code, Some(2));
    assert_eq!(answer["findings"].as_array().unwrap().len() as u64, COUNT + 1);
    let text = stdout(&world.ask(&["check"]));
    assert_eq!(text.lines().filter(|line| line.starts_with("also: ")).count(), 10);
    assert!(text.contains(&format!("and {} more: tapio check --all\n", COUNT - 10)), "{text}");
    let text = stdout(&world.ask(&["check", "--all"]));
    assert_eq!(text.lines().filter(|line| line.starts_with("also: ")).count() as u64, COUNT);
}

#[test]
fn why_of_something_that_looks_like_an_id_is_a_plain_sentence() {
    let mut world = World::start();
    let known = finding(0xab, "active", 0.9);
    world.publish(&known);
    let output = world.ask(&["why", "fnd-zz"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let sentence =
        "nothing is known against fnd-zz; the id of a finding is `fnd-` and 32 hexadecimal digits\n";
    assert_eq!(stdout(&output), sentence);
    let output = world.ask(&["why", &known.id.to_string()]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

fn data(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

#[test]
fn an_export_is_imported_elsewhere_and_exported_the_same() {
    let mut world = World::start();
    for number in 1..=3 {
        world.publish(&finding(number, "active", 0.9));
    }
    let file = world.dir.path().join("findings.jsonl.zst");
    let from = data(world.dir.path()).to_owned();
    let refused = run(&["export", data(&file), "--data-dir", &from]);
    assert_eq!(refused.status.code(), Some(1), "the store is in use");
    assert!(stderr(&refused).contains("another process"), "{}", stderr(&refused));
    world.stop();
    let exported = run(&["export", data(&file), "--data-dir", &from]);
    assert_eq!(exported.status.code(), Some(0), "{}", stderr(&exported));

    let elsewhere = data_dir();
    let to = data(elsewhere.path());
    for expected in ["3 revisions stored, 0 known", "0 revisions stored, 3 known"] {
        let imported = run(&["import", data(&file), "--data-dir", to]);
        assert_eq!(imported.status.code(), Some(0), "{}", stderr(&imported));
        assert!(stdout(&imported).starts_with(expected), "{}", stdout(&imported));
    }
    let [first, second] = [from.as_str(), to].map(|dir| run(&["export", "-", "--data-dir", dir]));
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(stdout(&first).lines().count(), 3);
    let nowhere = run(&["export", "-", "--data-dir", data(&elsewhere.path().join("nowhere"))]);
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(stderr(&nowhere).contains("no store of findings"), "{}", stderr(&nowhere));
}
