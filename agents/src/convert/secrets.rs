//! Lines without what looks like a secret. Too much is masked rather than too little: a line is evidence, not a record.

use super::cut;

/// Stands for what is masked.
const MASK: &str = "***";
/// A word of these, in any letter case, before `=` or `:` is followed by a secret.
const KEYS: [&str; 15] = [
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "access_key",
    "private_key",
    "credential",
    "authorization",
    "cookie",
    "session",
];
/// Words that announce one in the word after.
const SCHEMES: [&str; 2] = ["bearer", "basic"];
/// A word this long without a break, of letters and digits mixed, is no word of a language.
const RANDOM_MIN: usize = 32;

/// Lines that are kept of what a container said last.
pub const LINES_MAX: usize = 20;
/// Bytes of each.
const LINE_BYTES_MAX: usize = 400;

/// The last lines of a text that are not empty, masked.
pub fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let last = &all[all.len().saturating_sub(LINES_MAX)..];
    // Masked before it is cut: half of a secret is none that can be told.
    last.iter().map(|line| cut(&masked(line), LINE_BYTES_MAX).to_string()).collect()
}

/// The line, masked.
pub fn masked(line: &str) -> String {
    if line.contains("PRIVATE KEY") {
        return MASK.to_owned();
    }
    let mut out = String::with_capacity(line.len());
    let (mut follows, mut first) = (false, true);
    for word in line.split(' ') {
        if !first {
            out.push(' ');
        }
        first = false;
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
        if std::mem::take(&mut follows) && !bare.is_empty() {
            // `Authorization: Bearer x`: the scheme is none.
            follows = SCHEMES.contains(&bare.as_str());
            out.push_str(if follows { word } else { MASK });
            continue;
        }
        follows = SCHEMES.contains(&bare.as_str()) || (ends_with_a_key(&bare) && word.ends_with([':', '=']));
        out.push_str(&masked_word(word));
    }
    out
}

fn ends_with_a_key(word: &str) -> bool {
    KEYS.iter().any(|key| word.ends_with(key))
}

/// `scheme://user:x@host`, and each part of a query or a list of pairs.
fn masked_word(word: &str) -> String {
    if let Some((scheme, rest)) = word.split_once("://")
        && let Some((user, host)) = rest.rsplit_once('@')
    {
        let user = user.split(':').next().unwrap_or_default();
        return format!("{scheme}://{user}:{MASK}@{host}");
    }
    let mut out = String::with_capacity(word.len());
    for part in word.split_inclusive(['&', ';', ',']) {
        let end = part.trim_end_matches(['&', ';', ',']).len();
        out.push_str(&masked_part(&part[..end]));
        out.push_str(&part[end..]);
    }
    out
}

/// `password=x`, `"token":"x"`, and what looks random.
fn masked_part(word: &str) -> String {
    let lower = word.to_ascii_lowercase();
    let of_key = KEYS.iter().filter_map(|key| {
        let after = lower.find(key)? + key.len();
        let gap =
            word[after..].find(|c: char| !matches!(c, '"' | '\'' | '_') && !c.is_ascii_alphanumeric())?;
        let begins = after + gap;
        word[begins..].starts_with(['=', ':']).then_some(begins + 1)
    });
    if let Some(begins) = of_key.min().filter(|begins| word[*begins..].chars().any(char::is_alphanumeric)) {
        return format!("{}{MASK}", &word[..begins]);
    }
    masked_runs(word)
}

/// Long runs of mixed letters and digits: keys, hashes, tokens.
fn masked_runs(word: &str) -> String {
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while !rest.is_empty() {
        let is_of = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '_');
        let end = rest.find(|c: char| !is_of(c)).unwrap_or(rest.len());
        let run = &rest[..end];
        let has = |of: fn(&u8) -> bool| run.as_bytes().iter().any(of);
        let is_random = run.len() >= RANDOM_MIN && has(u8::is_ascii_digit) && has(u8::is_ascii_alphabetic);
        let is_known =
            (run.starts_with("eyJ") && run.len() > 12) || (run.starts_with("AKIA") && run.len() == 20);
        out.push_str(if is_random || is_known { MASK } else { run });
        let next = rest[end..].chars().next().map_or(end, |c| end + c.len_utf8());
        out.push_str(&rest[end..next]);
        rest = &rest[next..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_wherever_they_stand() {
        for (line, expected) in [
            ("password=hunter2 user=joe", "password=*** user=joe"),
            ("DB_PASSWORD: hunter2", "DB_PASSWORD: ***"),
            (r#"{"token":"abc","user":"joe"}"#, r#"{"token":***,"user":"joe"}"#),
            ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
            ("dial postgres://app:s3cret@db:5432/shop failed", "dial postgres://app:***@db:5432/shop failed"),
            ("GET /login?user=a&api_key=zzz&x=1", "GET /login?user=a&api_key=***&x=1"),
            ("key AKIAIOSFODNN7EXAMPLE refused", "key *** refused"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "jwt ***.***.c2ln"),
            ("hash 0123456789abcdef0123456789abcdef!", "hash ***!"),
            ("-----BEGIN RSA PRIVATE KEY-----", "***"),
            ("secret_key=x", "secret_key=***"),
        ] {
            assert_eq!(masked(line), expected);
        }
    }

    #[test]
    fn plain_lines_stay() {
        for line in [
            "panic: open /etc/app/config.yaml: no such file or directory",
            "2026-01-01T00:00:00Z ERROR dial tcp 10.0.0.1:5432: connect: connection refused",
            "token expired",
            "pod api-5f6585d649-x2x2x is gone",
            "a  double  space",
            "grüße: ü",
            "",
        ] {
            assert_eq!(masked(line), line);
        }
    }

    #[test]
    fn the_last_lines_are_kept_masked_and_cut() {
        let many: String = (0..100).map(|i| format!("line {i}\n\n")).collect();
        let last = last_lines(many.as_bytes());
        assert_eq!((last.len(), last[0].as_str(), last[19].as_str()), (20, "line 80", "line 99"));
        let line = format!("{} password=hunter2", "x ".repeat(300));
        assert!(last_lines(line.as_bytes())[0].len() <= LINE_BYTES_MAX);
        assert_eq!(last_lines(b"token=abc \xff"), ["token=*** \u{fffd}"]);
    }
}
