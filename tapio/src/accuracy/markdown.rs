//! The figures as tables of a page, between two marks; what people wrote around them stays.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, bail};

use super::fit::Fit;
use super::report::{CaseLine, Report, seconds};
use super::suite::Part;
use super::totals::Row;

const BEGIN: &str = "<!-- figures: begin (written by tapio accuracy --write) -->";
const END: &str = "<!-- figures: end -->";

/// Puts the figures into the page.
pub fn write(page: &Path, parts: &[Part], fit: &Fit) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    let text = with_figures(&text, &figures(parts, fit))
        .with_context(|| format!("{} has no place for figures: {BEGIN} and {END}", page.display()))?;
    std::fs::write(page, text).with_context(|| format!("cannot write {}", page.display()))
}

fn with_figures(page: &str, figures: &str) -> anyhow::Result<String> {
    let (before, rest) = page.split_once(BEGIN).context("the first mark is missing")?;
    let Some((_, after)) = rest.split_once(END) else { bail!("the second mark is missing") };
    Ok(format!("{before}{BEGIN}\n\n{figures}\n{END}{after}"))
}

fn figures(parts: &[Part], fit: &Fit) -> String {
    let mut out = String::new();
    if let Some(first) = parts.first() {
        let _ = tables(&mut out, &first.report);
    }
    let _ = comparison(&mut out, parts);
    let _ = calibration(&mut out, parts, fit);
    if let Some(first) = parts.first() {
        let _ = cases(&mut out, &first.report.cases);
    }
    out
}

fn tables(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "### Per system and kind\n")?;
    writeln!(
        out,
        "| system | kind | cases | entity @1 / @3 / @5 | category | both @1 / @3 / @5 | both @1, 95 % | silent | not provable | median time |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|")?;
    for row in &report.rows {
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            row.system,
            row.kind,
            row.cases,
            three(row.entity),
            percent(row.category),
            three(row.both),
            interval(row),
            row.cases - row.answered,
            row.unproven,
            seconds(row.seconds_median)
        )?;
    }
    let (spared, right) = report.spared;
    if spared > 0 {
        writeln!(out, "\nHealthy, recovered or not provable, left alone: {right} of {spared}.")?;
    }
    if let Some(all) = report.rows.first() {
        writeln!(
            out,
            "\nMedian time to the first right answer where the start of the fault is exactly known: {}. Confident findings of something else within the windows: {}.",
            seconds(all.seconds_median_exact),
            all.false_findings
        )?;
    }
    let rate = report.calm.per_hour.map_or_else(|| "–".to_owned(), |rate| format!("{rate:.2}"));
    writeln!(
        out,
        "Confident findings where no fault is labelled: {} in {:.1} h with data, {rate} per hour.",
        report.calm.findings, report.calm.hours
    )?;
    if let Some(speed) = &report.speed {
        writeln!(
            out,
            "Replay on one core: median case {:.0} times real time, slowest {:.0} times; minutes without data are not counted. Two runs of each case gave the same bytes.",
            speed.median, speed.least
        )?;
    }
    Ok(())
}

fn comparison(out: &mut String, parts: &[Part]) -> std::fmt::Result {
    writeln!(out, "\n### Compared\n\nEntity at rank 1, and both entity and category at rank 1.\n")?;
    let systems: Vec<&str> = parts
        .first()
        .map(|part| {
            part.report.rows.iter().filter(|row| row.kind == "all").map(|row| row.system.as_str()).collect()
        })
        .unwrap_or_default();
    let head: Vec<String> = systems.iter().map(|system| format!("{system}: entity | both")).collect();
    writeln!(out, "| method | {} | confident findings elsewhere, per hour |", head.join(" | "))?;
    writeln!(out, "|---{}|---|", "|---|---".repeat(systems.len()))?;
    for Part { name, report } in parts {
        let of = |system: &str| report.rows.iter().find(|row| row.system == system && row.kind == "all");
        let cell = |system: &&str| match of(system) {
            Some(row) => format!("{} | {}", percent(row.entity[0]), percent(row.both[0])),
            None => "– | –".to_owned(),
        };
        let cells: Vec<String> = systems.iter().map(cell).collect();
        let rate = report.calm.per_hour.map_or_else(|| "–".to_owned(), |rate| format!("{rate:.2}"));
        writeln!(out, "| {name} | {} | {rate} |", cells.join(" | "))?;
    }
    Ok(())
}

fn calibration(out: &mut String, parts: &[Part], fit: &Fit) -> std::fmt::Result {
    writeln!(out, "\n### Calibration\n\n```text\n{}```\n", fit.human())?;
    let Some(report) = parts.first().map(|part| &part.report) else { return Ok(()) };
    if let (Some(ece), Some(brier)) = (report.calibration.ece, report.calibration.brier) {
        writeln!(
            out,
            "As stated by the product: expected calibration error {ece:.3}, Brier score {brier:.3}.\n"
        )?;
    }
    writeln!(out, "| stated | answers | mean stated | right |\n|---|---|---|---|")?;
    for bin in &report.calibration.bins {
        writeln!(
            out,
            "| {:.1}–{:.1} | {} | {:.2} | {:.2} |",
            bin.from,
            bin.from + 0.1,
            bin.answers,
            bin.stated,
            bin.observed
        )?;
    }
    Ok(())
}

fn cases(out: &mut String, lines: &[CaseLine]) -> std::fmt::Result {
    writeln!(
        out,
        "\n### Case by case\n\n| case | kind | was | named | confidence | entity | both | time |\n|---|---|---|---|---|---|---|---|"
    )?;
    let or_dash = |text: &str| if text.is_empty() { "–".to_owned() } else { text.to_owned() };
    let mark = |share: f64| {
        if share >= 1.0 {
            "yes".to_owned()
        } else if share <= 0.0 {
            "no".to_owned()
        } else {
            percent(share)
        }
    };
    for line in lines {
        writeln!(
            out,
            "| {} | {} | {} | {} | {:.2} | {} | {} | {} |",
            line.case,
            line.kind,
            or_dash(&line.wanted),
            or_dash(&line.named),
            line.confidence,
            mark(line.right.0),
            mark(line.right.2),
            seconds(line.seconds)
        )?;
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn three(shares: [f64; 3]) -> String {
    shares.map(|share| format!("{:.0}", share * 100.0)).join(" / ") + " %"
}

fn interval(row: &Row) -> String {
    let (low, high) = row.both_interval;
    format!("{:.0}–{:.0} %", low * 100.0, high * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_around_the_figures_stays() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let page = with_figures(&page, "new\n").unwrap();
        assert_eq!(page, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(with_figures(&page, "new\n").unwrap(), page);
        assert!(with_figures("nothing", "new").is_err());
    }
}
