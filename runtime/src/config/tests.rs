use super::*;
use serde::Deserialize;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Root {
    bus: Inner,
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Inner {
    urls: Vec<String>,
    ack_timeout: HumanDuration,
    cache: ByteSize,
    token: Option<String>,
    window: usize,
    strict: bool,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            urls: vec!["nats://a:1".into(), "nats://b:2".into()],
            ack_timeout: HumanDuration::from_secs(5),
            cache: ByteSize::mib(1),
            token: None,
            window: 8,
            strict: false,
        }
    }
}

fn file(text: &str) -> (tempfile::NamedTempFile, Sources) {
    use std::io::Write;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    (file, sources)
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(load::<Root>(&Sources::default()).unwrap(), Root::default());
    for text in ["", "# only a comment\n", "---\n"] {
        let (_file, sources) = file(text);
        assert_eq!(load::<Root>(&sources).unwrap(), Root::default());
    }
}

#[test]
fn each_layer_beats_the_one_below() {
    let (_file, mut sources) = file(
        "bus:\n  urls: [nats://c:3]\n  ack_timeout: 2s\n  cache: 3MiB\n  window: 9\nlabels:\n  team: core\n",
    );
    sources.environment = env(&[
        ("TAPIO_BUS__ACK_TIMEOUT", "250ms"),
        ("TAPIO_BUS__URLS", "nats://d:4, nats://e:5"),
        ("TAPIO_BUS__TOKEN", "007"),
        ("TAPIO_SERVER", "reserved"),
        ("TAPIO_LOG", "debug"),
        ("HOME", "/"),
    ]);
    let sources = sources
        .with_override("bus.window=11")
        .unwrap()
        .with_override("bus.strict=true")
        .unwrap()
        .with_override("labels.zone=north")
        .unwrap();
    let root: Root = load(&sources).unwrap();
    assert_eq!(root.bus.ack_timeout, HumanDuration::from_millis(250));
    assert_eq!(root.bus.urls, ["nats://d:4", "nats://e:5"]);
    assert_eq!(root.bus.token.as_deref(), Some("007"), "text stays text");
    assert_eq!(root.bus.cache, ByteSize::mib(3));
    assert_eq!((root.bus.window, root.bus.strict), (11, true));
    assert_eq!(root.labels.len(), 2);
}

#[test]
fn unknown_keys_name_the_key_and_the_source() {
    let (kept, sources) = file("bus:\n  ack_timeot: 2s\n");
    let error = load::<Root>(&sources).unwrap_err().to_string();
    let path = kept.path().display().to_string();
    assert_eq!(
        error,
        format!("unknown configuration key `bus.ack_timeot` in file {path}; did you mean `ack_timeout`?")
    );

    let sources = Sources { environment: env(&[("TAPIO_BOSS__URLS", "x")]), ..Sources::default() };
    let error = load::<Root>(&sources).unwrap_err().to_string();
    assert!(error.contains("`boss`") && error.contains("TAPIO_BOSS__URLS"), "{error}");

    let sources = Sources::default().with_override("bus.colour=red").unwrap();
    let error = load::<Root>(&sources).unwrap_err().to_string();
    assert!(error.contains("`bus.colour` in flag bus.colour=red; known here:"), "{error}");
}

#[test]
fn wrong_values_name_the_key_and_the_source() {
    let (_file, mut sources) = file("bus:\n  window: 3\n");
    sources.environment = env(&[("TAPIO_BUS__ACK_TIMEOUT", "5")]);
    let error = load::<Root>(&sources).unwrap_err().to_string();
    assert!(error.contains("bus.ack_timeout"), "{error}");
    assert!(error.contains("set in environment variable TAPIO_BUS__ACK_TIMEOUT"), "{error}");

    let (kept, sources) = file("bus:\n  window: many\n");
    let error = load::<Root>(&sources).unwrap_err().to_string();
    assert!(error.contains("bus.window"), "{error}");
    assert!(error.contains(&kept.path().display().to_string()), "{error}");
}

#[test]
fn broken_files_and_flags_are_told() {
    let sources = Sources { file: Some("/nowhere/tapio.yaml".into()), ..Sources::default() };
    let error = load::<Root>(&sources).unwrap_err();
    assert!(matches!(error, ConfigError::FileUnreadable { .. }), "{error}");
    let (_file, sources) = file("bus: [unclosed\n");
    let error = load::<Root>(&sources).unwrap_err();
    assert!(matches!(error, ConfigError::FileInvalid { .. }), "{error}");
    assert!(Sources::default().with_override("novalue").is_err());
}
