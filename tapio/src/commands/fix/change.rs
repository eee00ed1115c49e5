//! What a command of a finding means, as one of a closed set of changes. The command is what people read; what is done
//! is a request to the API that is made of the same words. No shell ever sees it: what is not understood is not done.

use std::collections::BTreeMap;

use serde_json::Value;
use tapio_agents::collectors::kubernetes::objects::Place;

/// What stands in a command for a value that somebody has to choose.
pub const NEW_LIMIT: &str = "NEW_LIMIT";
/// Words of a command; longer ones are not understood.
const WORDS_MAX: usize = 32;

/// One change of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Of what.
    pub place: Place,
    /// What.
    pub what: What,
}

/// What is to be done to an object.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// Back to the revision before.
    RollBack,
    /// New pods of the same template.
    Restart,
    /// Whether a rollout stands still.
    Pause(bool),
    /// So many replicas.
    Scale(u32),
    /// Limits of a container by resource; [`NEW_LIMIT`] is to be chosen.
    Limits {
        /// Which container; of none the one that it must be.
        container: Option<String>,
        /// Quantity by resource.
        limits: BTreeMap<String, String>,
    },
    /// The labels that a Service selects.
    Select(BTreeMap<String, String>),
    /// Whether new pods are kept away from a machine.
    Cordon(bool),
    /// An object that holds nothing but its name.
    Create,
    /// It goes.
    Delete,
    /// A merge patch (RFC 7386).
    Merge(Value),
}

impl Change {
    /// What a command of kubectl means; nothing when it only looks, is of another program, or is more than one.
    pub fn of_command(command: &str) -> Option<Self> {
        let words = words(command)?;
        let mut line = Line::default();
        let mut rest = words.iter().map(String::as_str);
        if rest.next() != Some("kubectl") {
            return None;
        }
        while let Some(word) = rest.next() {
            match word {
                "-n" | "--namespace" => line.namespace = rest.next()?,
                "-p" | "--patch" => line.flags.push(("patch", rest.next()?)),
                "-c" => line.flags.push(("containers", rest.next()?)),
                flag if flag.starts_with("--") => line.flags.push(flag[2..].split_once('=')?),
                flag if flag.starts_with('-') => return None,
                word => line.words.push(word),
            }
        }
        line.change()
    }
}

/// The words of a command; nothing when it is more than plain words, such as a pipe. What follows ` # ` is a remark.
fn words(command: &str) -> Option<Vec<String>> {
    let command = command.split(" # ").next().unwrap_or_default();
    let (mut all, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in command.chars() {
        match (quote, letter) {
            (Some(open), letter) if open == letter => quote = None,
            (Some(_), letter) => word.get_or_insert_default().push(letter),
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, letter) if letter.is_whitespace() => all.extend(word.take()),
            (None, ';' | '|' | '&' | '>' | '<' | '$' | '`' | '(' | ')' | '\\' | '*') => return None,
            (None, letter) => word.get_or_insert_default().push(letter),
        }
    }
    all.extend(word);
    (quote.is_none() && all.len() <= WORDS_MAX).then_some(all)
}

#[derive(Default)]
struct Line<'a> {
    namespace: &'a str,
    words: Vec<&'a str>,
    flags: Vec<(&'a str, &'a str)>,
}

impl Line<'_> {
    fn change(&self) -> Option<Change> {
        let (what, object) = match self.words[..] {
            ["rollout", "undo", ref object @ ..] => (What::RollBack, object),
            ["rollout", "restart", ref object @ ..] => (What::Restart, object),
            ["rollout", "pause", ref object @ ..] => (What::Pause(true), object),
            ["rollout", "resume", ref object @ ..] => (What::Pause(false), object),
            ["scale", ref object @ ..] => (What::Scale(self.flag("replicas")?.parse().ok()?), object),
            ["set", "resources", ref object @ ..] => {
                let container = self.flag("containers").map(str::to_owned);
                (What::Limits { container, limits: pairs(self.flag("limits")?)? }, object)
            }
            ["set", "selector", ref object @ .., labels] => (What::Select(pairs(labels)?), object),
            ["cordon", ref name @ ..] => return self.cordon(true, name),
            ["uncordon", ref name @ ..] => return self.cordon(false, name),
            ["create", ref object @ ..] => (What::Create, object),
            ["delete", ref object @ ..] => (What::Delete, object),
            ["patch", ref object @ ..] if self.flag("type") == Some("merge") => {
                let patch: Value = serde_json::from_str(self.flag("patch")?).ok()?;
                (What::Merge(patch.is_object().then_some(patch)?), object)
            }
            _ => return None,
        };
        let (kind, name) = match object {
            [both] => both.split_once('/')?,
            [kind, name] => (*kind, *name),
            _ => return None,
        };
        let place = Place::of(kind, self.namespace, name)?;
        // What is made holds nothing, and of what is deleted as much can be made again.
        let is_bare = place.resource.kind == "ServiceAccount";
        let is_plain = match what {
            What::Create => is_bare,
            What::Delete => is_bare || place.resource.kind == "Pod",
            _ => true,
        };
        (is_plain && self.flags.iter().all(|(name, _)| known(&what, name))).then_some(Change { place, what })
    }

    fn cordon(&self, closed: bool, name: &[&str]) -> Option<Change> {
        let [name] = name else { return None };
        let place = Place::of("Node", "", name)?;
        self.flags.is_empty().then_some(Change { place, what: What::Cordon(closed) })
    }

    fn flag(&self, name: &str) -> Option<&str> {
        self.flags.iter().find(|(flag, _)| *flag == name).map(|(_, value)| *value)
    }
}

/// A flag that is not understood may mean anything.
fn known(what: &What, flag: &str) -> bool {
    match what {
        What::Scale(_) => flag == "replicas",
        What::Limits { .. } => ["limits", "containers"].contains(&flag),
        What::Merge(_) => ["type", "patch"].contains(&flag),
        _ => false,
    }
}

/// `a=1,b=2`; nothing when a part is no pair.
pub fn pairs(text: &str) -> Option<BTreeMap<String, String>> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=')?;
        (!key.is_empty()).then(|| (key.trim().to_owned(), value.trim().to_owned()))
    };
    text.split(',').map(pair).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn what(command: &str) -> Option<(String, What)> {
        Change::of_command(command).map(|change| (change.place.to_string(), change.what))
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn commands_that_change_one_object_are_understood() {
        let api = || "shop/Deployment/api".to_owned();
        for (command, expected) in [
            ("kubectl -n shop rollout undo deployment/api", (api(), What::RollBack)),
            ("kubectl -n shop rollout undo deployment/api # from shop/api:2", (api(), What::RollBack)),
            ("kubectl -n shop rollout pause deployment/api", (api(), What::Pause(true))),
            ("kubectl -n shop scale deployment/api --replicas=3", (api(), What::Scale(3))),
            (
                "kubectl -n shop set resources deployment/api --limits=memory=512Mi,cpu=2 -c app",
                (
                    api(),
                    What::Limits {
                        container: Some("app".to_owned()),
                        limits: map(&[("memory", "512Mi"), ("cpu", "2")]),
                    },
                ),
            ),
            (
                "kubectl -n shop set selector service api app=backend,tier=web",
                ("shop/Service/api".to_owned(), What::Select(map(&[("app", "backend"), ("tier", "web")]))),
            ),
            ("kubectl uncordon n1", ("Node/n1".to_owned(), What::Cordon(false))),
            (
                "kubectl -n shop create serviceaccount runner",
                ("shop/ServiceAccount/runner".to_owned(), What::Create),
            ),
            (
                r#"kubectl -n shop patch pvc data --type=merge -p '{"metadata":{"finalizers":null}}'"#,
                (
                    "shop/PersistentVolumeClaim/data".to_owned(),
                    What::Merge(json!({"metadata": {"finalizers": null}})),
                ),
            ),
        ] {
            let command = command.replace(" pvc ", " persistentvolumeclaim ");
            assert_eq!(what(&command), Some(expected), "{command}");
        }
    }

    #[test]
    fn what_only_looks_is_of_another_program_or_is_more_than_one_command_is_not_done() {
        for command in [
            "kubectl -n shop get pods",
            "kubectl -n shop describe deployment/api",
            "systemctl restart api.service",
            "kubectl -n shop rollout undo deployment/api; rm -rf /",
            "kubectl -n shop rollout undo deployment/$(id)",
            "kubectl -n shop rollout undo deployment/../secrets",
            "kubectl -n shop scale deployment/api --replicas=many",
            "kubectl -n shop scale deployment/api --replicas=1 --all",
            "kubectl -n shop delete deployment api",
            "kubectl delete namespace shop",
            "kubectl -n shop delete pod api-1 --force=true",
            "kubectl -n shop create secret api",
            "kubectl -n shop patch service api --type=merge -p 'not json'",
            "kubectl rollout undo deployment/api",
            "kubectl -n shop rollout undo widget/api",
            "kubectl -n shop rollout undo 'deployment/api",
            "",
        ] {
            assert_eq!(what(command), None, "{command}");
        }
    }
}
