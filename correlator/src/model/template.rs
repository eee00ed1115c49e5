//! Sentences with holes: `{growth.usage_bytes|bytes}`. A sentence whose hole has no data is not said. `{{` is a brace.

use serde::Deserialize;
use tapio_schemas::UnixNanos;

/// Filters a hole may use.
const FILTERS: [&str; 9] = ["bytes", "time", "date", "duration", "percent", "rate", "plain", "int", "double"];

/// A parsed template.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Hole { path: String, filter: Option<String> },
}

/// What fills a hole.
#[derive(Debug, Clone, PartialEq)]
pub enum TemplateValue {
    /// Text.
    Text(String),
    /// A number.
    Number(f64),
    /// A time.
    Time(UnixNanos),
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(source: String) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = source.as_str();
        while let Some(open) = rest.find('{') {
            parts.push(Part::Text(rest[..open].to_owned()));
            if let Some(after) = rest[open..].strip_prefix("{{") {
                parts.push(Part::Text("{".to_owned()));
                rest = after;
                continue;
            }
            let close = rest[open..].find('}').ok_or(format!("`{source}` has a `{{` that is not closed"))?;
            let hole = &rest[open + 1..open + close];
            let (path, filter) = match hole.split_once('|') {
                Some((path, filter)) => (path.trim(), Some(filter.trim())),
                None => (hole.trim(), None),
            };
            if path.is_empty() || !path.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b)) {
                return Err(format!(
                    "`{{{hole}}}` in `{source}` is not a name; write {{name}} or {{name|filter}}"
                ));
            }
            if let Some(unknown) = filter.filter(|f| !FILTERS.contains(f)) {
                return Err(format!("`{source}` uses filter `{unknown}`; use one of {}", FILTERS.join(", ")));
            }
            parts.push(Part::Hole { path: path.to_owned(), filter: filter.map(str::to_owned) });
            rest = &rest[open + close + 1..];
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { source, parts })
    }
}

impl Template {
    /// The text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Names the holes begin with: `growth`, `seat`, ….
    pub fn roots(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Hole { path, .. } => path.split('.').next(),
            Part::Text(_) => None,
        })
    }

    /// The sentence, or nothing when a hole has no data.
    pub fn fill(&self, lookup: &dyn Fn(&str) -> Option<TemplateValue>) -> Option<String> {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Hole { path, filter } => out.push_str(&shown(&lookup(path)?, filter.as_deref())?),
            }
        }
        Some(out)
    }
}

fn shown(value: &TemplateValue, filter: Option<&str>) -> Option<String> {
    match value {
        TemplateValue::Text(text) if text.is_empty() => None,
        TemplateValue::Text(text) => match (filter, text.parse::<f64>()) {
            (Some(_), Ok(number)) => number_text(number, filter),
            _ => Some(on_one_line(text)),
        },
        TemplateValue::Number(number) => number_text(*number, filter),
        TemplateValue::Time(at) if filter == Some("date") => Some(date_time(*at)),
        TemplateValue::Time(at) => Some(clock_time(*at)),
    }
}

fn number_text(number: f64, filter: Option<&str>) -> Option<String> {
    if !number.is_finite() {
        return None;
    }
    Some(match filter {
        Some("bytes") => bytes(number),
        Some("rate") => format!("{}/s", bytes(number)),
        Some("duration") => duration(number),
        Some("percent") => percent(number),
        Some("int") => format!("{number:.0}"),
        Some("double") => format!("{:.0}", number * 2.0),
        _ => plain(number),
    })
}

/// `12`, `6.2`, `0.0042`: two places behind the point, or two digits that mean something, without zeros at the end.
pub fn plain(number: f64) -> String {
    let small = number != 0.0 && number.abs() < 0.1;
    let places = if small { (1.0 - number.abs().log10().floor()).clamp(2.0, 9.0) as usize } else { 2 };
    let text = format!("{number:.places$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `12 %`, `0.4 %` of a share. What is little is not nothing.
pub fn percent(share: f64) -> String {
    match share.abs() * 100.0 {
        p if p == 0.0 || p >= 0.95 => format!("{:.0} %", share * 100.0),
        p if p >= 0.05 => format!("{:.1} %", share * 100.0),
        _ => "less than 0.1 %".to_owned(),
    }
}

/// Lines one after the other: what a machine said may have several.
pub fn on_one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// `10:02:31` in UTC.
pub fn clock_time(at: UnixNanos) -> String {
    let zone = jiff::tz::TimeZone::UTC;
    jiff::Timestamp::from_nanosecond(i128::from(at.0))
        .map_or_else(|_| at.0.to_string(), |t| t.to_zoned(zone).strftime("%H:%M:%S").to_string())
}

/// `2026-01-31 14:02:11`.
pub fn date_time(at: UnixNanos) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).map_or_else(
        |_| at.0.to_string(),
        |t| t.to_zoned(jiff::tz::TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// `45.2 MiB`.
pub fn bytes(count: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count;
    let mut unit = 0;
    // 1023.7 KiB reads better as 1.0 MiB.
    while value.abs() >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let whole = (value - value.round()).abs() < 0.05;
    let digits = if unit == 0 || whole { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `12 s`, `3 min`, `2.5 h`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Result<Template, String> {
        Template::try_from(text.to_owned())
    }

    #[test]
    fn numbers_have_no_zeros_at_the_end_and_little_is_not_nothing() {
        let all = [6.2, 2100.0, 0.0042, 0.126, 0.0, -3.5].map(plain);
        assert_eq!(all, ["6.2", "2100", "0.0042", "0.13", "0", "-3.5"]);
        let all = [0.0, 0.004, 0.0001, 0.0099, 0.365, 1.1].map(percent);
        assert_eq!(all, ["0 %", "0.4 %", "less than 0.1 %", "1 %", "36 %", "110 %"]);
    }

    #[test]
    fn holes_are_filled_and_formatted() {
        let lookup = |path: &str| match path {
            "growth.usage" => Some(TemplateValue::Number(48.0 * 1024.0 * 1024.0)),
            "kill.at" => Some(TemplateValue::Time(UnixNanos(1_700_000_000_000_000_000))),
            _ => None,
        };
        let filled = template("uses {growth.usage|bytes} at {kill.at|time}").unwrap().fill(&lookup);
        assert_eq!(filled.unwrap(), "uses 48 MiB at 22:13:20");
        assert_eq!(template("no {such.thing}").unwrap().fill(&lookup), None);
        let lines = |_: &str| Some(TemplateValue::Text("gone\nfor good\n".to_owned()));
        assert_eq!(template("It said: {it.said}.").unwrap().fill(&lines).unwrap(), "It said: gone for good.");
        let braces = template(r#"-p '{{"uses":{growth.usage|bytes}}'"#).unwrap();
        assert_eq!(braces.fill(&lookup).unwrap(), r#"-p '{"uses":48 MiB}'"#);
    }

    #[test]
    fn broken_templates_are_refused() {
        assert!(template("{open").is_err());
        assert!(template("{a b}").is_err());
        assert!(template("{a|shout}").unwrap_err().contains("shout"));
    }

    #[test]
    fn quantities_read_well() {
        assert_eq!(bytes(64.0 * 1024.0 * 1024.0), "64 MiB");
        assert_eq!(bytes(1_150_000.0), "1.1 MiB");
        assert_eq!(bytes(1_048_200.0), "1 MiB");
        assert_eq!(duration(64.0), "64 s");
        assert_eq!(duration(600.0), "10 min");
    }
}
