//! Development aid: windows of tallies as JSON lines → findings as JSON lines.
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::engine::StageTwo;
use tapio_correlator::model::Model;
use tapio_schemas::service::*;
use tapio_schemas::signal::{EdgeKind, Fact};
use tapio_schemas::wire::{ShardMark, SignalSection};
use tapio_schemas::{Entity, EventId, ProducerId, UnixNanos};

fn service(v: &Value) -> Entity {
    Entity::new("Service", "", v.as_str().unwrap(), "")
}
fn nanos(v: &Value) -> UnixNanos {
    UnixNanos((v.as_f64().unwrap() * 1000.0) as u64 * 1_000_000)
}
fn hist(v: &Value) -> Histogram {
    v.as_array()
        .unwrap()
        .iter()
        .map(|p| (p[0].as_u64().unwrap() as u16, p[1].as_u64().unwrap() as u32))
        .collect()
}
fn ev(v: &Value) -> EventId {
    EventId(u128::from(v["ev"].as_u64().unwrap()))
}
fn main() {
    let (input, output) = (std::env::args().nth(1).unwrap(), std::env::args().nth(2).unwrap());
    let model = match std::env::var("PATTERNS") {
        Ok(dir) => Model::load_dir(std::path::Path::new(&dir)).unwrap(),
        Err(_) => Model::builtin().unwrap(),
    };
    let mut two = StageTwo::new(&CorrelatorConfig::default(), Arc::new(model));
    let mut out = std::io::BufWriter::new(std::fs::File::create(output).unwrap());
    let mut number = 0u64;
    let mut last = UnixNanos(0);
    let mut debug = std::env::var("SIGNALS").is_ok().then(|| tapio_correlator::unite::Uniter::new("local"));
    let mut push = |two: &mut StageTwo, mut section: SignalSection, at: UnixNanos| {
        number += 1;
        section.marks = (0..64).map(|shard| ShardMark { shard, epoch: 0, at }).collect();
        if let Some(uniter) = &mut debug {
            for s in uniter.apply(section.clone()).signals {
                eprintln!(
                    "{} {} {} {} {:.2} {}since {} {:?}",
                    at.0 / 1_000_000_000,
                    s.kind,
                    s.entity.owner().name,
                    s.peer.map(|p| p.name).unwrap_or_default(),
                    s.strength.get(),
                    if s.ended { "ended " } else { "" },
                    s.onset.0 / 1_000_000_000,
                    s.attributes.iter().map(|a| format!("{}={}", a.key, a.value)).collect::<Vec<_>>()
                );
            }
        }
        for finding in two.apply(ProducerId(1), number, section) {
            writeln!(out, "{}", serde_json::to_string(&finding).unwrap()).unwrap();
        }
    };
    for line in std::io::BufReader::new(std::fs::File::open(input).unwrap()).lines() {
        let w: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let window_start = nanos(&w["start"]);
        let window_ns = 5_000_000_000;
        let mut section = SignalSection::default();
        for o in w["ops"].as_array().unwrap() {
            let shapes = o["shapes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| {
                    let steps: Vec<Step> = s["steps"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|x| Step {
                            kind: match x[0].as_str().unwrap() {
                                "C" => StepKind::Call,
                                "L" => StepKind::Log,
                                _ => StepKind::ErrorLog,
                            },
                            service: x[1].as_str().unwrap().into(),
                            name: x[2].as_str().unwrap().into(),
                        })
                        .collect();
                    Shape {
                        id: s["id"].as_u64().unwrap(),
                        count: s["count"].as_u64().unwrap() as u32,
                        steps,
                        inner: s["inner"].as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect(),
                        evidence: ev(s),
                    }
                })
                .collect();
            section.operations.push(OperationTally {
                window_start,
                window_ns,
                service: service(&o["svc"]),
                operation: o["op"].as_str().unwrap().into(),
                requests: o["req"].as_u64().unwrap(),
                own_time: hist(&o["own"]),
                shapes,
                unshaped: 0,
                evidence: ev(o),
            });
        }
        for g in w["gaps"].as_array().unwrap() {
            section.call_gaps.push(CallGapTally {
                window_start,
                window_ns,
                from: service(&g["a"]),
                to: service(&g["b"]),
                operation: g["op"].as_str().unwrap().into(),
                gap: hist(&g["gap"]),
                evidence: ev(g),
            });
        }
        let names: BTreeMap<&str, Measure> = Measure::ALL.iter().map(|m| (m.as_str(), *m)).collect();
        for m in w["meters"].as_array().unwrap() {
            section.meters.push(ServiceMeter {
                at: nanos(&m["at"]),
                service: service(&m["svc"]),
                pod: m["pod"].as_str().unwrap().into(),
                measure: names[m["measure"].as_str().unwrap()],
                label: m["label"].as_str().unwrap().into(),
                value: m["v"].as_f64().unwrap(),
                evidence: ev(m),
            });
        }
        for c in w["calls"].as_array().unwrap() {
            section.facts.push(Fact {
                at: window_start,
                edge: EdgeKind::Calls,
                from: service(&c[0]),
                to: service(&c[1]),
                gone: false,
            });
        }
        let end = window_start.plus(window_ns);
        if last.0 > 0 && end.since(last) > window_ns {
            push(&mut two, SignalSection::default(), end.minus(window_ns));
        }
        last = end;
        push(&mut two, section, end);
    }
    push(&mut two, SignalSection::default(), last.plus(3_500_000_000));
}
