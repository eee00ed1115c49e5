//! Whom init containers wait for, read from their commands: `until nslookup ledger; do sleep 2; done`.

use serde_json::Value;
use smol_str::{SmolStr, ToSmolStr};

use super::json::{list, str_at};

/// Hosts kept of a pod.
const HOSTS_MAX: usize = 8;
/// Programs that are given a host.
const ASKERS: [&str; 9] =
    ["nslookup", "host", "dig", "getent", "ping", "nc", "ncat", "telnet", "wait-for-it.sh"];

/// Container and host, in the order of the commands; names of the cluster only: one word, or one with `.svc`.
pub fn asked(pod: &Value) -> Vec<(SmolStr, SmolStr)> {
    let mut asked = Vec::new();
    for container in list(pod, "/spec/initContainers") {
        let words = ["/command", "/args"].into_iter().flat_map(|part| list(container, part));
        let text: Vec<&str> = words.filter_map(Value::as_str).collect();
        let name = str_at(container, "/name").to_smolstr();
        asked.extend(hosts(&text.join(" ")).into_iter().map(|host| (name.clone(), host)));
    }
    asked.truncate(HOSTS_MAX);
    asked
}

fn hosts(text: &str) -> Vec<SmolStr> {
    let is_break = |c: char| c.is_whitespace() || "'\"`;|&()<>$".contains(c);
    let mut found: Vec<SmolStr> = Vec::new();
    let mut asks = false;
    for word in text.split(is_break).filter(|word| !word.is_empty()) {
        let program = word.rsplit('/').next().unwrap_or_default();
        let bare = host_of(word);
        if ASKERS.contains(&program) || ["-h", "--host"].contains(&word) {
            asks = true;
            continue;
        }
        let is_option = word.starts_with('-') || word == "hosts" || word.bytes().all(|b| b.is_ascii_digit());
        if (asks && !is_option) || word.contains("://") || word.contains(".svc") {
            asks = false;
            if is_of_cluster(bare) && !found.iter().any(|known| known == bare) {
                found.push(bare.to_smolstr());
            }
        }
    }
    found
}

/// `http://ledger.harbour.svc:80/live` → `ledger.harbour.svc`
fn host_of(word: &str) -> &str {
    let word = word.split_once("://").map_or(word, |(_, rest)| rest);
    word.split(['/', ':', '?', ',']).next().unwrap_or_default()
}

fn is_of_cluster(host: &str) -> bool {
    let is_name = !host.is_empty()
        && host.starts_with(|c: char| c.is_ascii_lowercase())
        && host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
    is_name && host != "localhost" && (!host.contains('.') || host.contains(".svc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_whom_they_wait_for() {
        for (command, expected) in [
            ("sh -c until nslookup ledger; do sleep 2; done", vec!["ledger"]),
            (
                "until nc -z -w 2 ledger.harbour.svc 5432; do echo waiting; sleep 1; done",
                vec!["ledger.harbour.svc"],
            ),
            ("wget -qO- http://pilot:8080/ready", vec!["pilot"]),
            ("pg_isready -h db-primary -p 5432 -U app", vec!["db-primary"]),
            ("until getent hosts queue; do :; done", vec!["queue"]),
            ("curl https://example.com/x", vec![]),
            ("nslookup 10.0.0.1", vec![]),
            ("/migrate up", vec![]),
        ] {
            assert_eq!(hosts(command), expected, "{command}");
        }
    }
}
