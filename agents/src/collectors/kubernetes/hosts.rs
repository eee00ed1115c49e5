//! Whom init containers wait for, read from their commands: `until nslookup ledger; do sleep 2; done`.
//!
//! A host that is read wrongly is a Service that is missed wrongly: a word counts only where a known program takes a host, where it
//! is an address of a protocol that is spoken to Services, or where it is written as a name of the cluster.

use std::collections::BTreeSet;

use serde_json::Value;
use smol_str::{SmolStr, ToSmolStr};

use super::json::{list, str_at};

/// Hosts kept of a pod.
const HOSTS_MAX: usize = 8;
/// Programs that are given a host.
const ASKERS: [&str; 10] =
    ["nslookup", "host", "dig", "ping", "nc", "ncat", "telnet", "wait-for-it.sh", "wait-for-it", "wait-for"];
/// Programs whose `-h` is a host; that of others is help, or how sizes are written.
const CLIENTS: [&str; 10] = [
    "psql",
    "pg_isready",
    "pg_dump",
    "redis-cli",
    "valkey-cli",
    "mysql",
    "mysqladmin",
    "mariadb",
    "mariadb-admin",
    "clickhouse-client",
];
/// Words before a program; its options, numbers and variables are such as well.
const BEFORE_PROGRAMS: [&str; 17] = [
    "until", "while", "if", "elif", "then", "do", "else", "!", "{", "exec", "time", "timeout", "env", "sh",
    "bash", "ash", "busybox",
];
/// Programs that only say what they are given.
const TELLERS: [&str; 3] = ["echo", "printf", ":"];
/// Databases of `getent` that have hosts; the others have users, groups, protocols.
const DATABASES: [&str; 4] = ["hosts", "ahosts", "ahostsv4", "ahostsv6"];
/// Options that are followed by a word that is no host.
const WITH_WORD: [&str; 4] = ["-t", "-I", "-X", "-x"];
/// Protocols that Services are spoken to by; what else has `://` is a place where files are.
const PROTOCOLS: [&str; 22] = [
    "http",
    "https",
    "ws",
    "wss",
    "tcp",
    "grpc",
    "postgres",
    "postgresql",
    "mysql",
    "mariadb",
    "mongodb",
    "redis",
    "rediss",
    "valkey",
    "amqp",
    "amqps",
    "nats",
    "kafka",
    "ldap",
    "ldaps",
    "clickhouse",
    "memcached",
];
/// Words that stand where a host would and are none: `mysql://app@tcp(ledger:3306)/x`.
const NO_HOSTS: [&str; 3] = ["localhost", "tcp", "unix"];

/// Container and host, in the order of the commands, of the init containers that `counts` takes; names of the cluster only, as
/// [`service_of`] reads them.
pub fn asked(pod: &Value, counts: impl Fn(&str) -> bool) -> Vec<(SmolStr, SmolStr)> {
    let mut asked = Vec::new();
    for container in list(pod, "/spec/initContainers") {
        let name = str_at(container, "/name");
        if counts(name) {
            let words = ["/command", "/args"].into_iter().flat_map(|part| list(container, part));
            let text: Vec<&str> = words.filter_map(Value::as_str).collect();
            asked.extend(hosts(&text.join(" ")).into_iter().map(|host| (name.to_smolstr(), host)));
        }
    }
    asked.truncate(HOSTS_MAX);
    asked
}

fn hosts(text: &str) -> Vec<SmolStr> {
    let mut found = Vec::new();
    let mut known = BTreeSet::new();
    for command in text.split([';', '|', '&', '\n', '(', ')', '`']) {
        for host in hosts_of(command) {
            if found.len() < HOSTS_MAX && known.insert(host) {
                found.push(host.to_smolstr());
            }
        }
    }
    found
}

/// Hosts of one command, without those of the commands inside of it.
fn hosts_of(command: &str) -> Vec<&str> {
    let is_break = |c: char| c.is_whitespace() || "'\"<>".contains(c);
    let mut found = Vec::new();
    // Whether the next word is a host; whether only such came that stand before a program; what `-h` is.
    let (mut asks, mut begins, mut is_client) = (false, true, false);
    let mut words = command.split(is_break).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let program = word.rsplit('/').next().unwrap_or_default();
        if begins && TELLERS.contains(&program) {
            return found;
        }
        is_client |= CLIENTS.contains(&program);
        if begins && program == "getent" {
            asks = words.next().is_some_and(|database| DATABASES.contains(&database));
        } else if (begins && ASKERS.contains(&program)) || word == "--host" || (word == "-h" && is_client) {
            (asks, begins) = (true, false);
        } else if asks && WITH_WORD.contains(&word) {
            words.next();
        } else if let Some(host) = host_in(word, &mut asks) {
            found.push(host);
        }
        begins &= is_before_program(word);
    }
    found
}

/// The host of the cluster that a word names.
fn host_in<'a>(word: &'a str, asks: &mut bool) -> Option<&'a str> {
    let named = word.strip_prefix("--host=");
    let is_address = word.split_once("://").is_some_and(|(before, _)| {
        let scheme = before.rsplit([':', '=', ',']).next().unwrap_or_default();
        PROTOCOLS.contains(&scheme.split('+').next().unwrap_or_default())
    });
    let is_place = word.contains("://") && !is_address;
    let is_answer = *asks && !is_option(word);
    if is_answer {
        *asks = false;
    }
    let host = host_of(named.unwrap_or(word));
    // Names with dots that are not of the cluster are left out below.
    let is_one = is_answer || named.is_some() || is_address || host.contains('.');
    (is_one && !is_place && is_of_cluster(host)).then_some(host)
}

/// What may stand between a program and the host that it is given.
fn is_option(word: &str) -> bool {
    word.starts_with(['-', '+']) || word.bytes().all(|b| b.is_ascii_digit())
}

fn is_before_program(word: &str) -> bool {
    let program = word.rsplit('/').next().unwrap_or_default();
    BEFORE_PROGRAMS.contains(&program)
        || word.starts_with(|c: char| c == '-' || c == '[' || c.is_ascii_digit())
        || word.contains('=')
}

/// `http://app:word@ledger.harbour.svc:80/live` → `ledger.harbour.svc`
fn host_of(word: &str) -> &str {
    let word = word.split_once("://").map_or(word, |(_, rest)| rest);
    let authority = word.split(['/', '?', ',']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    host.split(':').next().unwrap_or_default()
}

/// Variables of a shell are no names: nobody knows here what they say.
fn is_of_cluster(host: &str) -> bool {
    let is_name = !host.is_empty()
        && host.starts_with(|c: char| c.is_ascii_lowercase())
        && host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
    is_name && !NO_HOSTS.contains(&host) && service_of(host, "").is_some()
}

/// Name and namespace of the Service that a host is of, asked for in the namespace `own`; none when it is not of the cluster:
/// `ledger`, `ledger.bank.svc`, `ledger-0.ledger.bank.svc.cluster.local`.
pub fn service_of<'a>(host: &'a str, own: &'a str) -> Option<(&'a str, &'a str)> {
    if !host.contains('.') {
        return Some((host, own));
    }
    let before = host.strip_suffix(".svc").or_else(|| Some(host.rsplit_once(".svc.")?.0))?;
    // Before the name there may be that of a pod behind it.
    let mut words = before.rsplit('.');
    let namespace = words.next()?;
    Some((words.next()?, namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &[(&str, &[&str])]) {
        for (command, expected) in table {
            assert_eq!(hosts(command), *expected, "{command}");
        }
    }

    #[test]
    fn commands_name_whom_they_wait_for() {
        check(&[
            ("sh -c until nslookup ledger; do sleep 2; done", &["ledger"]),
            (
                "until nc -z -w 2 ledger.harbour.svc 5432; do echo waiting; sleep 1; done",
                &["ledger.harbour.svc"],
            ),
            ("wget -qO- http://pilot:8080/ready", &["pilot"]),
            ("pg_isready -h db-primary -p 5432 -U app", &["db-primary"]),
            ("until getent hosts queue; do :; done", &["queue"]),
            ("until getent ahosts queue; do :; done", &["queue"]),
            ("getent passwd app || getent hosts db", &["db"]),
            ("nslookup hosts && getent hosts hosts && nc -z ahosts 80", &["hosts", "ahosts"]),
            (
                "migrate ledger-0.ledger.harbour.svc.cluster.local:5432",
                &["ledger-0.ledger.harbour.svc.cluster.local"],
            ),
            ("until redis-cli -h redis ping; do sleep 1; done", &["redis"]),
            ("until mysqladmin ping -h db -u root; do sleep 1; done", &["db"]),
            ("migrate --host=db up", &["db"]),
            ("timeout 60 /bin/nc -zv db 80\n/usr/bin/nc -zv queue 81", &["db", "queue"]),
            ("dig +short -t srv ledger", &["ledger"]),
            ("sh -c if [ -z \"$(nslookup ledger)\" ]; then exit 1; fi", &["ledger"]),
            ("while ! nc -z a 1 && nc -z b 2; do sleep 1; done", &["a", "b"]),
            ("/wait-for-it.sh -t 30 db:5432 -- run", &["db"]),
            ("DB=postgres://app:pw@db/x?a=1&b=2 migrate", &["db"]),
            ("jdbc:postgresql://db:5432/x", &["db"]),
            ("postgresql+psycopg2://app:p@db/x", &["db"]),
            ("mongodb://u:p@m-0:27017,m-1:27017/x", &["m-0"]),
        ]);
    }

    #[test]
    fn what_names_nobody_of_the_cluster_is_left_alone() {
        check(&[
            ("curl https://example.com/x", &[]),
            ("curl https://api.svc-prod.example.com/x", &[]),
            ("nslookup api.svc-prod.example.com", &[]),
            ("nc -z ledger.svc 80", &[]),
            ("migrate /etc/ledger.harbour.svc.yaml", &[]),
            ("getent passwd app || adduser app", &[]),
            ("getent group docker; getent services", &[]),
            ("nslookup 10.0.0.1", &[]),
            ("/migrate up", &[]),
            ("until nc -z \"$host\" 5432; do sleep 1; done", &[]),
            ("until nc -z ${host} 5432; do sleep 1; done", &[]),
            ("until nc -z $(cat /etc/db) 5432; do sleep 1; done", &[]),
            ("until nslookup $HOST.harbour.svc; do sleep 1; done", &[]),
            ("curl http://$host:80/ready", &[]),
            ("echo waiting for host; sleep 5", &[]),
            ("echo waiting for http://ledger", &[]),
            ("for host in a b; do nc -z $host 80; done", &[]),
            ("until ping; do sleep 1; done", &[]),
            ("chown -h app /data", &[]),
            ("du -h data", &[]),
            ("aws s3 cp s3://models/x /models", &[]),
            ("migrate -source file://migrations up", &[]),
            ("migrate mysql://app:pw@tcp(10.0.0.1:3306)/x", &[]),
        ]);
    }

    #[test]
    fn hosts_are_of_a_service_and_a_namespace() {
        for (host, service) in [
            ("ledger", Some(("ledger", "own"))),
            ("ledger.harbour.svc", Some(("ledger", "harbour"))),
            ("ledger.harbour.svc.cluster.local.", Some(("ledger", "harbour"))),
            ("kafka-0.kafka.harbour.svc.cluster.local", Some(("kafka", "harbour"))),
            ("svc.svc.svc", Some(("svc", "svc"))),
            ("ledger.svc", None),
            ("ledger.harbour", None),
            ("api.svc-prod.example.com", None),
        ] {
            assert_eq!(service_of(host, "own"), service, "{host}");
        }
    }

    #[test]
    fn hosts_are_kept_up_to_a_limit() {
        let many: Vec<String> = (0..HOSTS_MAX + 4).map(|n| format!("http://s{n}")).collect();
        assert_eq!(hosts(&many.join(" ")).len(), HOSTS_MAX);
    }
}
