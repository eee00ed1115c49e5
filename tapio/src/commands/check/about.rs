//! Which findings were asked for.

use std::collections::BTreeSet;

use anyhow::bail;
use tapio_agents::collectors::kubernetes::Snapshot;
use tapio_agents::collectors::kubernetes::snapshot::Named;
use tapio_agents::collectors::kubernetes::snapshot::selector::Selector;
use tapio_schemas::{Entity, Finding};

use crate::cli::CheckArgs;
use crate::verdict::is_of_what_runs;

/// What the answer is to be about.
#[derive(Debug, Default)]
pub struct About {
    entity: Option<Entity>,
    namespace: Option<String>,
    /// Objects by label.
    pub selector: Option<Selector>,
}

impl About {
    /// As the command line has it.
    pub fn of(args: &CheckArgs) -> anyhow::Result<Self> {
        let selector = args.scope.selector.as_deref().map(Selector::parse).transpose()?;
        let names_an_instance = args.client.server().is_some() || args.client.data_dir().is_some();
        if selector.is_some() && names_an_instance && args.from.is_none() && !args.scope.names_a_cluster() {
            bail!("an instance keeps no labels: leave out -l, or ask the cluster with --context");
        }
        Ok(Self {
            entity: args.entity.as_deref().filter(|text| !text.is_empty()).map(Entity::parse_query),
            namespace: args.scope.namespace.clone(),
            selector,
        })
    }

    /// Whether a finding concerns it; `selected` is what the selector matches.
    pub fn concerns(&self, finding: &Finding, selected: &BTreeSet<Named>) -> bool {
        let mentioned: Vec<&Entity> = finding.entities().collect();
        let is_selected = |entity: &Entity| {
            selected.contains(&(entity.kind.clone(), entity.namespace.clone(), entity.name.clone()))
        };
        self.entity.as_ref().is_none_or(|wanted| mentioned.iter().any(|entity| wanted.matches(entity)))
            && (self.selector.is_none() || mentioned.iter().any(|entity| is_selected(entity)))
            && self.is_in_namespace(&mentioned)
    }

    /// What is asked for and is not there: of a name that was misspelt nothing is healthy.
    pub fn absent_from(&self, snapshot: &Snapshot) -> Option<String> {
        let wanted = self.entity.as_ref()?;
        let in_namespace = |entity: &Entity| {
            let wanted = self.namespace.as_deref().unwrap_or_default();
            wanted.is_empty() || entity.namespace.is_empty() || entity.namespace == wanted
        };
        let is_there = snapshot.has(|entity| wanted.matches(entity) && in_namespace(entity));
        (!is_there).then(|| format!("{} is not among the objects that were listed", self.words()))
    }

    /// The query for what is asked for, if it is of a kind of which an instance knows all that run.
    pub fn of_what_runs(&self) -> Option<String> {
        let wanted = self.entity.as_ref()?;
        let namespace = match wanted.namespace.as_str() {
            "" => self.namespace.as_deref().unwrap_or_default(),
            of_query => of_query,
        };
        let in_words = match (namespace, wanted.kind.as_str()) {
            ("", "") => wanted.name.to_string(),
            ("", kind) => format!("{kind}/{}", wanted.name),
            (namespace, kind) => format!("{namespace}/{kind}/{}", wanted.name),
        };
        is_of_what_runs(wanted).then_some(in_words)
    }

    /// As it was asked for, in words.
    pub fn words(&self) -> String {
        let wanted = self.entity.clone().unwrap_or_default();
        let kind = if wanted.kind.is_empty() { String::new() } else { format!("{} ", wanted.kind) };
        let namespace = self.namespace.clone().unwrap_or_else(|| wanted.namespace.to_string());
        let namespace =
            if namespace.is_empty() { String::new() } else { format!(" in namespace {namespace}") };
        format!("{kind}{}{namespace}", wanted.name)
    }

    /// Whether a finding is of the namespace that was asked for.
    pub fn is_of_namespace(&self, finding: &Finding) -> bool {
        self.is_in_namespace(&finding.entities().collect::<Vec<_>>())
    }

    /// What is in no namespace concerns all of them.
    fn is_in_namespace(&self, mentioned: &[&Entity]) -> bool {
        let is_wanted = |wanted: &str, entity: &Entity| {
            entity.namespace == wanted || (entity.namespace.is_empty() && entity.kind != "External")
        };
        self.namespace
            .as_deref()
            .is_none_or(|wanted| mentioned.iter().any(|entity| is_wanted(wanted, entity)))
    }
}
