//! Lines without what looks like a secret. Too much is masked rather than too little: a line is evidence, not a record.

use std::iter::Peekable;
use std::ops::Range;
use std::str::Chars;

use super::cut;

/// Stands for what is masked.
const MASK: &str = "***";
/// A name with one of these in it, in any letter case, is followed by a secret: after `=` or `:`, or as `--password x`.
const KEYS: [&str; 19] = [
    "password",
    "passwd",
    "pwd",
    "passphrase",
    // Before what they begin with.
    "secret_key",
    "secret-key",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "access_key",
    "access-key",
    "private_key",
    "private-key",
    "credential",
    "authorization",
    "cookie",
    "session",
];
/// Of these all that follows is secret, over blanks and signs: `Digest username="x", response="y"`, `a=b; sid=c`.
const HEADERS: [&str; 2] = ["authorization", "cookie"];
/// Words that announce one in the word after, and nowhere else.
const SCHEMES: [&str; 2] = ["bearer", "basic"];
/// A name that ends so, a gap behind it, tells of a secret without having it: `secretName: db`, `TokenExpiredError: at 9`.
const OPEN_ENDS: [&str; 13] = [
    "name",
    "names",
    "namespace",
    "ref",
    "refs",
    "type",
    "kind",
    "mode",
    "file",
    "path",
    "seconds",
    "error",
    "exception",
];
/// A word this long without a break, of letters and digits mixed, is no word of a language.
const RANDOM_MIN: usize = 32;
/// Bytes of a name after the part that makes it one of a secret.
const NAME_BYTES_MAX: usize = 64;

/// Lines that are kept of what a container said last.
pub const LINES_MAX: usize = 20;
/// Bytes of each.
const LINE_BYTES_MAX: usize = 400;

/// The last lines of a text that are not empty, masked, without what a terminal would obey.
pub fn last_lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let said = text.lines().rev().map(plain).filter(|line| !line.is_empty());
    // Masked before it is cut: half of a secret is none that can be told.
    let mut last: Vec<String> =
        said.take(LINES_MAX).map(|line| cut(&masked(&line), LINE_BYTES_MAX).to_string()).collect();
    last.reverse();
    last
}

/// The line without control characters and without the sequences that they begin: colours, titles, moves of the cursor.
fn plain(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\u{1b}' => skip_sequence(&mut rest),
            '\u{9b}' => skip_parameters(&mut rest),
            c if c.is_control() && c.is_whitespace() => out.push(' '),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// What follows an escape character: `[31m`, `]0;title` with its end (ECMA-48, 5.3 and 5.4), else one character, or `(B`
/// (ECMA-35, 13.2).
fn skip_sequence(rest: &mut Peekable<Chars<'_>>) {
    match rest.next_if(|c| matches!(c, '[' | ']')) {
        Some('[') => skip_parameters(rest),
        Some(_) => while rest.next_if(|c| !c.is_control()).is_some() {},
        None => {
            while rest.next_if(|c| (' '..='/').contains(c)).is_some() {}
            rest.next_if(|c| ('0'..='~').contains(c));
        }
    }
}

fn skip_parameters(rest: &mut Peekable<Chars<'_>>) {
    while rest.next_if(|c| (' '..='?').contains(c)).is_some() {}
    rest.next_if(|c| ('@'..='~').contains(c));
}

/// The line, masked.
pub fn masked(line: &str) -> String {
    if line.contains("PRIVATE KEY") {
        return MASK.to_owned();
    }
    let lower = line.to_ascii_lowercase();
    let mut out = String::with_capacity(line.len());
    // Up to where it is told, the place that is looked at, and the word that this is in.
    let (mut told, mut at, mut word) = (0, 0, 0..0);
    while let Some(c) = line[at..].chars().next() {
        if at >= word.end {
            word = at..end_of_word(line, at);
        }
        match secret(line, &lower, at, &word) {
            Some(secret) => {
                out.push_str(&masked_runs(&line[told..secret.start]));
                out.push_str(MASK);
                (told, at) = (secret.end, secret.end);
            }
            None => at += c.len_utf8(),
        }
    }
    out.push_str(&masked_runs(&line[told..]));
    out
}

/// The secret that what stands at `at` announces. `lower` is the line in small letters, `word` is around `at`.
fn secret(line: &str, lower: &str, at: usize, word: &Range<usize>) -> Option<Range<usize>> {
    let here = &lower[at..];
    if here.starts_with("://") {
        return of_url(line, at + 3, word.end);
    }
    let is_inside = lower[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
    if let Some(scheme) = SCHEMES.iter().find(|scheme| !is_inside && here.starts_with(**scheme)) {
        return of_scheme(line, lower, at + scheme.len());
    }
    let key = KEYS.iter().find(|key| here.starts_with(**key))?;
    of_key(line, lower, at..at + key.len(), word)
}

/// The password of `scheme://user:x@host`; who is alone before the host is one.
fn of_url(line: &str, begins: usize, ends: usize) -> Option<Range<usize>> {
    let rest = &line[begins..ends];
    let authority = &rest[..rest.find(['/', '?', '#', '"', '\'']).unwrap_or(rest.len())];
    let host = match authority.rfind('@') {
        Some(host) => host,
        // A password may have in it what ends an authority elsewhere; then what is before that is no port.
        None => {
            let (_, port) = authority.split_once(':')?;
            let is_port = port.bytes().all(|byte| byte.is_ascii_digit());
            rest.rfind('@').filter(|_| !is_port)?
        }
    };
    let password = rest[..host].find(':').map_or(0, |colon| colon + 1);
    (password < host).then(|| begins + password..begins + host)
}

/// `Bearer x`
fn of_scheme(line: &str, lower: &str, after: usize) -> Option<Range<usize>> {
    let tail = &line[after..];
    let gap = tail.find(|c: char| c.is_whitespace() || c.is_alphanumeric())?;
    let said = tail[gap..].trim_start();
    let begins = line.len() - said.len();
    let ends = end_of_word(line, begins);
    let is_said = begins > after + gap && has_text(&line[begins..ends]);
    is_said.then(|| begins..further(line, lower, begins, ends))
}

/// `password=x`, `"token" : "x y"`, `--secret x`; a name ends with `key` or goes on there.
fn of_key(line: &str, lower: &str, key: Range<usize>, word: &Range<usize>) -> Option<Range<usize>> {
    let tail = &line[key.end..];
    let is_of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'"' | b'\'' | b'\\');
    let gap = tail.bytes().take(NAME_BYTES_MAX + 1).position(|byte| !is_of_name(byte))?;
    let (more, tail) = tail.split_at(gap);
    let name = key.start..key.end + gap;
    let is_whole = !has_text(more);
    let signed = tail.trim_start().strip_prefix(['=', ':']);
    let said = match signed {
        Some(said) => said.trim_start_matches(['=', '>']).trim_start(),
        None if is_whole && is_flag(&line[word.clone()]) => {
            tail.strip_prefix(',').unwrap_or(tail).strip_prefix(char::is_whitespace)?.trim_start()
        }
        None => return None,
    };
    let begins = line.len() - said.len();
    let is_adjacent = !line[key.end..begins].contains(char::is_whitespace);
    let last = bare(&lower[key.end..name.end]);
    if !is_adjacent && OPEN_ENDS.iter().any(|end| last.ends_with(end)) {
        return None;
    }
    if signed.is_some() && HEADERS.iter().any(|header| lower[name.clone()].contains(header)) {
        // `Authorization: Bearer x` says what follows by itself.
        let is_scheme = SCHEMES.contains(&&lower[begins..end_of_word(line, begins)]);
        return end_of_header(line, &name, begins).filter(|_| !is_scheme).map(|ends| begins..ends);
    }
    let ends = value(line, begins, is_adjacent)?;
    let is_scheme = SCHEMES.contains(&bare(&lower[begins..ends]));
    (!is_scheme).then(|| begins..further(line, lower, begins, ends))
}

/// End of what begins there behind the name of a header: behind the quote that closes it, or the header as a whole, else the
/// end of the line. None where there is nothing to hide.
fn end_of_header(line: &str, name: &Range<usize>, begins: usize) -> Option<usize> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let before = line[..name.start].trim_end_matches(is_of_name);
    let unopened = before.trim_end_matches(is_quote);
    // `"Cookie: x"`, where `"cookie": x` has closed that of the name.
    let around = before[unopened.len()..].chars().last().filter(|quote| !line[name.clone()].contains(*quote));
    let said = line[begins..].trim_start_matches('\\');
    let own = said.chars().next().filter(|c| is_quote(*c));
    let (from, quote) = match (around, own) {
        (Some(quote), None) => (before.len() - 1, quote),
        (None, Some(quote)) => (line.len() - said.len(), quote),
        _ => return has_text(&line[begins..]).then_some(line.len()),
    };
    let unescaped = line[..from].trim_end_matches('\\').len();
    let ends = closing(&line[unescaped..], from - unescaped, quote).map(|length| unescaped + length);
    // Behind a sign it may have opened a part of the header: `username="x", response="y"`.
    let opens_part = |end: &usize| {
        line[..end - 1].trim_end_matches('\\').ends_with('=')
            && line[*end..]
                .starts_with(|c: char| !c.is_whitespace() && !matches!(c, ',' | ';' | ')' | ']' | '}'))
    };
    let ends = ends.filter(|end| !opens_part(end)).unwrap_or(line.len());
    has_text(&line[begins..ends]).then_some(ends)
}

/// End of a secret that may announce one itself: of `password: token x` all is masked, and of `token: secretValue: x` and
/// `token: Cookie: a=b; sid=c`.
fn further(line: &str, lower: &str, begins: usize, ends: usize) -> usize {
    let is_sign = |c: char| matches!(c, '=' | ':' | '>');
    let (mut from, mut ends) = (begins, ends);
    loop {
        let word = &lower[from..ends];
        let rest = line[ends..].trim_start_matches(|c: char| c.is_whitespace() || is_sign(c));
        from = line.len() - rest.len();
        let has_sign = word.ends_with(is_sign) || line[ends..from].contains(is_sign);
        if !KEYS.iter().any(|key| bare(word).ends_with(key) || (has_sign && word.contains(key))) {
            break;
        }
        let Some(next) = value(line, from, false) else { break };
        ends = next;
    }
    let has_header = HEADERS.iter().any(|header| lower[begins..ends].contains(header));
    if has_header { line.len() } else { ends }
}

/// End of the value that begins there: its closing quote, else the end of the word, or of its part of a list of pairs when it
/// stands close to its name. None where there is nothing to hide.
fn value(line: &str, begins: usize, is_adjacent: bool) -> Option<usize> {
    let said = &line[begins..];
    let opened = said.trim_start_matches('\\');
    let quote = opened.chars().next().filter(|c| is_quote(*c));
    let length = match quote {
        // One that is not closed hides all the rest.
        Some(quote) => closing(said, said.len() - opened.len(), quote).unwrap_or(said.len()),
        None => {
            let is_end = |c: char| c.is_whitespace() || (is_adjacent && matches!(c, '&' | ';' | ','));
            said.find(is_end).unwrap_or(said.len())
        }
    };
    has_text(&said[..length]).then_some(begins + length)
}

/// Behind the quote that closes what begins with one. A quote after more backslashes than that had stands for itself.
fn closing(said: &str, backslashes: usize, quote: char) -> Option<usize> {
    let mut before = 0;
    for (at, c) in said.char_indices().skip(backslashes + 1) {
        if c == quote && before <= backslashes {
            return Some(at + 1);
        }
        before = if c == '\\' { before + 1 } else { 0 };
    }
    None
}

/// `--password`, also as an item of a list.
fn is_flag(word: &str) -> bool {
    word.trim_start_matches(['[', '"', '\'']).starts_with('-')
}

fn is_quote(c: char) -> bool {
    matches!(c, '"' | '\'' | '`')
}

fn end_of_word(line: &str, at: usize) -> usize {
    line[at..].find(char::is_whitespace).map_or(line.len(), |length| at + length)
}

fn bare(word: &str) -> &str {
    word.trim_matches(|c: char| !c.is_ascii_alphanumeric())
}

fn has_text(text: &str) -> bool {
    text.contains(char::is_alphanumeric)
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
mod tests;
