//! What is masked and what is not.

use proptest::prelude::*;

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
        ("password = hunter2", "password = ***"),
        ("password := hunter2 user", "password := *** user"),
        (r#""password" : "x""#, r#""password" : ***"#),
        (r#"password="correct horse, battery" user=joe"#, "password=*** user=joe"),
        (r#"{"secret": "my \"own\" words","user":"joe"}"#, r#"{"secret": ***,"user":"joe"}"#),
        (r#"{\"token\":\"a b\",\"user\":\"joe\"}"#, r#"{\"token\":***,\"user\":\"joe\"}"#),
        ("passphrase: 'never closed, user=joe", "passphrase: ***"),
        ("clone https://TOKEN@host/ failed", "clone https://***@host/ failed"),
        ("postgres://u:p@h/x?sslpassword=y", "postgres://u:***@h/x?sslpassword=***"),
        ("postgres://u:p/w@h/x,amqp://u:q@h", "postgres://u:***@h"),
        (r#"Get "https://u:p@h/x": refused"#, r#"Get "https://u:***@h/x": refused"#),
        ("mysql --password x -h db", "mysql --password *** -h db"),
        ("run --api-key=x --password --token y z", "run --api-key=*** --password *** z"),
        (r#"["--token", "x y", "-v"]"#, r#"["--token", ***, "-v"]"#),
        ("Authorization:Basic YTpi done", "Authorization:Basic *** done"),
        ("Authorization: token abc done", "Authorization: ***"),
        ("Authorization: Negotiate YIIabc", "Authorization: ***"),
        ("proxy-authorization=NTLM TlRMabc user=joe", "proxy-authorization=***"),
        (r#"Authorization: Digest username="joe", response="abc""#, "Authorization: ***"),
        (r#""Authorization: Digest username="joe", response="abc"" sent"#, r#""Authorization: ***"#),
        (r#"{"authorization": "Splunk abc def", "user": "joe"}"#, r#"{"authorization": ***, "user": "joe"}"#),
        (r#"{\"Cookie\":\"a=b; sid=c\",\"user\":\"joe\"}"#, r#"{\"Cookie\":***,\"user\":\"joe\"}"#),
        ("Cookie: a=b; sid=abcdef", "Cookie: ***"),
        ("Set-Cookie: sid=abcdef; Path=/; HttpOnly", "Set-Cookie: ***"),
        ("session_cookie=a=b; sid=abcdef", "session_cookie=***"),
        ("curl -H 'Cookie: a=b; sid=c' http://web/", "curl -H 'Cookie: *** http://web/"),
        (r#"curl -H "Authorization: SSWS abc=" http://web/"#, r#"curl -H "Authorization: *** http://web/"#),
        ("curl --cookie sid=c http://web/", "curl --cookie *** http://web/"),
        ("token: Cookie: a=b; sid=c", "token: ***"),
        ("SECRET_KEY = 'django-insecure-abc'", "SECRET_KEY = ***"),
        ("SECRET_KEY: hunter2", "SECRET_KEY: ***"),
        ("secretAccessKey: wJal/abc", "secretAccessKey: ***"),
        (r#""tokenValue": "abc", "user": "joe""#, r#""tokenValue": ***, "user": "joe""#),
        ("secret-key: abc", "secret-key: ***"),
        ("run --secret-key abc --private-key=x -v", "run --secret-key *** --private-key=*** -v"),
        ("token: secretAccessKey: abc", "token: ***"),
        ("tab password\t=\thunter2", "tab password\t=\t***"),
    ] {
        assert_eq!(masked(line), expected);
    }
}

proptest! {
    /// A quote that is open before it may be closed by that of the password: there is none.
    #[test]
    fn whatever_surrounds_a_password_it_is_not_told(
        before in "([a-zé :=,&\\\\-]|token|bearer |://|@){0,12}",
        name in "password|SECRET_KEY|secretAccessKey|tokenValue|client-secret|api-key|passwords",
        sign in "( ?[:=] ?\"?|\": \"|=)",
        after in "([a-zé :=,&\"'\\\\-]|secret|://|@){0,12}",
    ) {
        let line = format!("{before} {name}{sign}hunter2 {after}");
        prop_assert!(!masked(&line).contains("hunter2"), "{line} → {}", masked(&line));
    }

    #[test]
    fn of_a_header_nothing_is_told(
        before in "([a-zé :=,&-]|token|bearer |://|@){0,12}",
        name in "(proxy-)?authorization|Authorization|(Set-)?Cookie|COOKIE|x_session_cookie",
        signs in prop::sample::select(vec![
            ("", ": ", ""), ("", ":", ""), ("", "=", ""), ("\"", ": ", "\""), ("'", ":", "'"), ("\\\"", ": ", "\\\""),
            ("\"", "\": \"", "\""), ("'", "': '", "'"), ("\\\"", "\\\":\\\"", "\\\""), ("", ": \"", "\""),
        ]),
        value in prop::sample::select(vec![
            "hunter2", "Negotiate hunter2", "NTLM  hunter2=", "Basic hunter2", "Bearer hunter2", "token hunter2", "SSWS a hunter2",
            "Digest username=\"joe\", response=\"hunter2\"", "Digest realm=\"\", nonce=\"hunter2\"",
            "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host;date, Signature=hunter2",
            "a=b; sid=hunter2", "a=\"b c\"; sid=hunter2", "sid=hunter2; Path=/; HttpOnly", "a='', sid=hunter2",
        ]),
        after in "([a-zé :=,&\"'\\\\-]|secret|://|@){0,12}",
    ) {
        let (open, sign, close) = signs;
        let line = format!("{before} {open}{name}{sign}{value}{close} {after}");
        prop_assert!(!masked(&line).contains("hunter2"), "{line} → {}", masked(&line));
    }

    #[test]
    fn no_text_carries_control_characters(text in "(\\PC|\u{1b}|\u{9b}|\\[|;|m|\\]|\t|\r|\n|\u{7}){0,40}") {
        prop_assert!(last_lines(text.as_bytes()).iter().all(|line| !line.contains(char::is_control)));
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
        "volume db: secretName: db-credentials is not there",
        "TokenExpiredError: at 9",
        "\"secretKeyRef\" : \"db\"",
        "token_expiration_seconds = 3600",
        "password is empty, --password",
        "password= , token: \"\"",
        "GET http://host:8080/users/a@b: 404",
        "basically, tokenised",
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

#[test]
fn a_terminal_finds_nothing_to_obey() {
    for (said, told) in [
        ("\u{1b}[1;31mERROR\u{1b}[0m no\tdatabase", "ERROR no database"),
        ("\u{1b}]0;title\u{7}\u{1b}[2J\u{1b}c\u{9b}31mred", "red"),
        ("10 %\r20 %\u{8}\u{0}\u{85}done\u{7f}", "10 % 20 % done"),
        ("pass\u{1b}[0mword=x", "password=***"),
        ("\u{1b}[31mred\u{1b}(B\u{1b}[m pass\u{1b}(Bword=x", "red password=***"),
        ("ends in \u{1b}[", "ends in"),
        ("ends in \u{1b}#", "ends in"),
        ("\u{1b}ü", "ü"),
    ] {
        assert_eq!(last_lines(format!("{said}\n\u{1b}[0m\n").as_bytes()), [told], "{said:?}");
    }
}
