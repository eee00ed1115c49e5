//! The binary as a plugin of kubectl: under the name `kubectl-tapio` it is `kubectl tapio`.

use std::ffi::OsString;
use std::path::Path;

use crate::cli;

/// Name under which kubectl finds it.
const PLUGIN: &str = "kubectl-tapio";

/// The command line as it is meant: a plugin that is given no command checks the cluster of the context, and `fix`
/// changes what is wrong there.
pub fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    let is_plugin =
        arguments.first().is_some_and(|name| Path::new(name).file_stem() == Some(PLUGIN.as_ref()));
    if !is_plugin {
        return arguments;
    }
    let first = arguments.get(1).and_then(|first| first.to_str()).unwrap_or_default();
    if ["check", "fix"].contains(&first) {
        arguments.insert(2, "--of-context".into());
    } else if !is_of_program(first) {
        arguments.splice(1..1, ["check".into(), "--of-context".into()]);
    }
    arguments
}

/// Other commands, and what every command line program answers.
fn is_of_program(first: &str) -> bool {
    ["help", "-h", "--help", "-V", "--version"].contains(&first)
        || cli::visible().get_subcommands().any(|command| command.get_name() == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(line: &str) -> String {
        let words = arguments(line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_plugin_without_a_command_checks_the_cluster_of_the_context() {
        assert_eq!(meant("/usr/bin/kubectl-tapio"), "/usr/bin/kubectl-tapio check --of-context");
        assert_eq!(meant("kubectl-tapio -n shop"), "kubectl-tapio check --of-context -n shop");
        assert_eq!(
            meant("kubectl-tapio deploy/api -o json"),
            "kubectl-tapio check --of-context deploy/api -o json"
        );
        assert_eq!(meant("kubectl-tapio check -A"), "kubectl-tapio check --of-context -A");
        // What is changed is of the context too: so must the verdict be.
        assert_eq!(meant("kubectl-tapio fix api --yes"), "kubectl-tapio fix --of-context api --yes");
        for line in ["kubectl-tapio --help", "kubectl-tapio why api", "tapio check", "tapio"] {
            assert_eq!(meant(line), line);
        }
    }
}
