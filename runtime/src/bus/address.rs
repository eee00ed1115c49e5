//! URLs of servers: parsed, with what they say about who we are, and shown without it.

use async_nats::{ConnectOptions, ServerAddr};

use super::BusError;

/// Parses every URL.
pub(super) fn parse(urls: &[String]) -> Result<Vec<ServerAddr>, BusError> {
    if urls.is_empty() {
        let message = "the list is empty".to_owned();
        return Err(BusError::Url { url: String::new(), message });
    }
    let parse = |url: &String| {
        url.parse().map_err(|error: std::io::Error| BusError::Url {
            url: without_secrets(url),
            message: error.to_string(),
        })
    };
    urls.iter().map(parse).collect()
}

/// Uses `user:password@` or `token@` of the first URL that has one: the client itself ignores them.
pub(super) fn log_in(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    let Some(server) = servers.iter().find(|server| server.has_user_pass()) else { return options };
    let name = percent_decoded(server.username().unwrap_or_default());
    match server.password() {
        Some(password) => options.user_and_password(name, percent_decoded(password)),
        None => options.token(name),
    }
}

/// The URLs in one line, fit for logs.
pub(super) fn shown(urls: &[String]) -> String {
    urls.iter().map(|url| without_secrets(url)).collect::<Vec<_>>().join(", ")
}

fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
}

/// `%40` is `@`. What is not a whole escape stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        bytes.push(escape.map_or(*first, |(high, low)| high << 4 | low));
        rest = if escape.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let urls = ["nats://u:p@a:1", "b:2", "tls://token@c", "x:y@z"].map(str::to_owned);
        assert_eq!(shown(&urls), "nats://a:1, b:2, tls://c, z");
        let error = parse(&["bad://u:p@a:1".to_owned()]).unwrap_err().to_string();
        assert!(!error.contains("u:p"), "{error}");
    }

    #[test]
    fn escapes_are_undone_and_broken_ones_kept() {
        assert_eq!(percent_decoded("p%40ss%3Aword%"), "p@ss:word%");
        assert_eq!(percent_decoded("%4"), "%4");
        assert_eq!(percent_decoded("%zz%C3%A4"), "%zzä");
    }
}
