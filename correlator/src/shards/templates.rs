//! What log lines and names of operations have in common, without what differs from one request to the next.
//!
//! The masking and the path of fixed depth are Drain's (He, Zhu, Zheng and Lyu, 2017: a line is found by its first words after
//! what looks variable is masked). The part of Drain that learns from lines seen before is left out: a line must have
//! the same template in all shards and after a restart, whatever was seen before.

/// Words of a template: depth of the path.
const WORDS_MAX: usize = 5;
/// Words of a line that are looked at, so that a long line costs no more than a short one.
const WORDS_READ_MAX: usize = 24;
/// Longest word of a template, bytes.
const WORD_BYTES_MAX: usize = 40;
/// Longest name of an operation, bytes.
const OPERATION_BYTES_MAX: usize = 160;
/// Stands for what is masked.
const MASK: char = '*';

/// Words after which the id of the trace or of the span follows: each line has others.
const ID_WORDS: [&str; 6] = ["traceid", "trace_id", "trace", "spanid", "span_id", "span"];

/// Template of a log line, into `out`.
pub fn line(body: &str, out: &mut String) {
    out.clear();
    let mut words = body.split_ascii_whitespace().take(WORDS_READ_MAX).peekable();
    // What stands before the first letter is when, not what.
    while words.peek().is_some_and(|word| is_time(word)) {
        words.next();
    }
    let (mut kept, mut is_value, mut is_id) = (0, false, false);
    for word in words {
        if kept == WORDS_MAX {
            break;
        }
        if std::mem::take(&mut is_id) {
            continue;
        }
        match id_word(word) {
            IdWord::AndIdFollows => {
                is_id = true;
                continue;
            }
            IdWord::WithId => continue,
            IdWord::None => {}
        }
        if kept > 0 {
            out.push(' ');
        }
        kept += 1;
        if is_code_position(word) {
            out.push_str(cut(word, WORD_BYTES_MAX));
            is_value = false;
            continue;
        }
        if is_value || word.bytes().any(|b| b.is_ascii_digit()) {
            mask_value(word, is_value, out);
        } else {
            push_word(word, out);
        }
        is_value = word.ends_with([':', '=']);
    }
}

/// Name of an operation with its ids masked, into `out`; the query of a path is left out.
pub fn operation(name: &str, out: &mut String) {
    out.clear();
    let name = name.split_once('?').map_or(name, |(path, _)| path);
    let mut rest = cut(name.trim(), OPERATION_BYTES_MAX);
    while let Some(first) = rest.chars().next() {
        if is_separator(first) {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let end = rest.find(is_separator).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if is_id(word) {
            out.push(MASK);
        } else {
            out.push_str(word);
        }
        rest = after;
    }
}

fn is_separator(c: char) -> bool {
    c.is_whitespace() || "/,;:()[]{}<>\"'&=|@".contains(c)
}

/// True for what names one thing of many: numbers, UUIDs, hashes, words of which digits are a good part. Versions and names
/// such as `v1`, `s3` or `Travel2Controller` are none.
fn is_id(word: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    if digits == 0 {
        return false;
    }
    let letters = word.chars().filter(|c| c.is_alphabetic()).count();
    let hex = word.len() >= 8 && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    letters == 0 || hex || digits >= 3
}

enum IdWord {
    None,
    /// `TraceID:`
    AndIdFollows,
    /// `trace_id=0af7…`
    WithId,
}

fn id_word(word: &str) -> IdWord {
    let word = word.trim_matches(|c: char| "[]{}(),;\"".contains(c));
    let Some(at) = word.find([':', '=']) else { return IdWord::None };
    let (key, value) = word.split_at(at);
    let key = key.trim_matches('"');
    if !ID_WORDS.iter().any(|id| key.eq_ignore_ascii_case(id)) {
        return IdWord::None;
    }
    if value[1..].trim_matches('"').is_empty() { IdWord::AndIdFollows } else { IdWord::WithId }
}

/// `16:48:16.664`, `2023-01-29T16:48:16Z`, `1674982096.664`, `[2023-01-29`.
fn is_time(word: &str) -> bool {
    let word = word.trim_matches(|c: char| "[](),".contains(c));
    let bytes = word.as_bytes();
    let allowed = |b: &u8| b.is_ascii_digit() || b"-:.,/+TZ".contains(b);
    bytes.first().is_some_and(u8::is_ascii_digit)
        && bytes.iter().all(allowed)
        && bytes.iter().filter(|b| b.is_ascii_digit()).count() >= 4
}

/// `o.s.OrderServiceImpl#324`, `server.go:88`: digits that say where in the program, not what happened to be there.
fn is_code_position(word: &str) -> bool {
    let word = word.trim_matches(|c: char| "[]()".contains(c));
    let Some((name, line)) = word.rsplit_once(['#', ':']) else { return false };
    let is_line = !line.is_empty() && line.len() <= 6 && line.bytes().all(|b| b.is_ascii_digit());
    let named = name.as_bytes().first().is_some_and(|b| b.is_ascii_alphabetic() || *b == b'_');
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._$/-[]".contains(&b));
    is_line && named && plain && (word.contains('#') || name.contains('.'))
}

/// `user=4711` keeps its key; anything else is masked as a whole.
fn mask_value(word: &str, is_value: bool, out: &mut String) {
    let key = word.find('=').filter(|_| !is_value).map(|at| &word[..=at]);
    if let Some(key) = key.filter(|key| !key.bytes().any(|b| b.is_ascii_digit())) {
        out.push_str(cut(key, WORD_BYTES_MAX));
    }
    out.push(MASK);
}

/// A word without digits; the value in `state=open` is masked.
fn push_word(word: &str, out: &mut String) {
    match word.find('=') {
        Some(at) if at > 0 && at + 1 < word.len() => {
            out.push_str(cut(&word[..=at], WORD_BYTES_MAX));
            out.push(MASK);
        }
        _ => out.push_str(cut(word, WORD_BYTES_MAX)),
    }
}

/// At most so many bytes, cut at a character.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(body: &str) -> String {
        let mut out = String::from("left over");
        line(body, &mut out);
        out
    }

    fn named(name: &str) -> String {
        let mut out = String::new();
        operation(name, &mut out);
        out
    }

    #[test]
    fn what_differs_is_masked_and_where_it_was_logged_stays() {
        let a = "16:48:16.664 INFO  t.s.TravelServiceImpl#372 TraceID: 88ebfbcebbbc0884eabd9178e1808940 SpanID: dd84024e [getTickets][num is: 3]";
        let b = "17:00:00.001 INFO  t.s.TravelServiceImpl#372 TraceID: 0 SpanID: 1 [getTickets][num is: 4]";
        assert_eq!(template(a), template(b));
        assert_eq!(template(a), "INFO t.s.TravelServiceImpl#372 [getTickets][num is: *");
        let other =
            "17:00:00.001 INFO  t.s.TravelServiceImpl#373 TraceID: 0 SpanID: 1 [getTickets][num is: 4]";
        assert_ne!(template(b), template(other));
    }

    #[test]
    fn lines_of_many_programs() {
        for (body, expected) in [
            ("2023-01-29T16:48:16Z GET /orders/4711 took 12ms", "GET * took *"),
            ("[2023-01-29 16:48:16,001] server.go:88 user=bob logged in", "server.go:88 user=* logged in"),
            ("trace_id=0af7651916cd43dd span_id=00f067aa cart emptied", "cart emptied"),
            ("Payment declined: card 4111 of bob", "Payment declined: * * of"),
            ("retries=3 limit=5", "retries=* limit=*"),
            ("", ""),
            ("4711", ""),
        ] {
            assert_eq!(template(body), expected, "{body}");
        }
    }

    #[test]
    fn templates_are_bounded_at_characters() {
        let long = "ä".repeat(1000);
        assert_eq!(template(&long).len(), WORD_BYTES_MAX);
        assert!(template(&"x ".repeat(100_000)).len() < 2 * WORDS_MAX);
        assert!(named(&long).len() <= OPERATION_BYTES_MAX);
    }

    #[test]
    fn ids_in_operations_are_masked_and_versions_stay() {
        for (name, expected) in [
            ("/api/v1/travel2service/trips/left", "/api/v1/travel2service/trips/left"),
            ("GET /orders/4711/items/7", "GET /orders/*/items/*"),
            ("/users/63306003-4d50-48d3-8666-3662a312e807?full=1", "/users/*"),
            ("/trips/G1234", "/trips/*"),
            ("SELECT ts.trip2", "SELECT ts.trip2"),
            ("Travel2Controller.queryInfo", "Travel2Controller.queryInfo"),
            ("/api/v1/orders/{orderId}", "/api/v1/orders/{orderId}"),
            ("hipstershop.AdService/GetAds", "hipstershop.AdService/GetAds"),
            ("process deadbeef01", "process *"),
        ] {
            assert_eq!(named(name), expected);
        }
    }
}
