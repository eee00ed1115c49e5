//! Whether a finding speaks of what the label names.

use serde::Deserialize;

/// Kinds under which a service may be named, in lower case.
const WORKLOADS: [&str; 10] = [
    "deployment",
    "pod",
    "service",
    "statefulset",
    "daemonset",
    "replicaset",
    "job",
    "cronjob",
    "container",
    "workload",
];

/// What a label names.
#[derive(Debug, Clone, PartialEq)]
pub enum Wanted {
    /// A service by its name: the service itself, its workload, or a pod or replica set of it.
    Service(String),
    /// One of these objects, exactly; the first is the one meant.
    Objects(Vec<Place>),
}

/// An object: kind in lower case, namespace, name.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Kind, lower case.
    pub kind: String,
    /// Namespace; empty for none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The entity of a finding as published.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Named {
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Wanted {
    /// True when `entity` is what is wanted.
    pub fn is(&self, entity: &Named) -> bool {
        let kind = entity.kind.to_lowercase();
        match self {
            Self::Service(service) => {
                entity.name == *service
                    || (WORKLOADS.contains(&kind.as_str()) && is_instance(&entity.name, service))
            }
            Self::Objects(places) => places.iter().any(|place| {
                place.kind == kind && place.namespace == entity.namespace && place.name == entity.name
            }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Service(service) => service,
            Self::Objects(places) => places.first().map_or("", |place| &place.name),
        }
    }
}

/// True for `<service>-<hash>` and `<service>-<hash>-<suffix>`, as replica sets and pods are named.
pub fn is_instance(name: &str, service: &str) -> bool {
    let Some(rest) = name.strip_prefix(service).filter(|rest| rest.starts_with('-')) else { return false };
    let parts = rest.matches('-').count();
    (1..=2).contains(&parts) && rest.contains(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(kind: &str, name: &str) -> Named {
        Named { kind: kind.to_owned(), namespace: "shop".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_service_is_its_workload_and_its_pods_and_not_its_neighbour() {
        let cart = Wanted::Service("cart".to_owned());
        assert!(cart.is(&named("Deployment", "cart")));
        assert!(cart.is(&named("Pod", "cart-5d8f-abc")) && cart.is(&named("ReplicaSet", "cart-5d8f")));
        assert!(
            !cart.is(&named("Service", "cart-db")),
            "another service, no instance: no digit in its suffix"
        );
        assert!(!cart.is(&named("Pod", "cart-db-5d8f-abc")), "a pod of another service");
        assert!(!cart.is(&named("Node", "cart-5d8f")), "no workload");
        assert!(!cart.is(&named("Pod", "cartoon-5")));
    }

    #[test]
    fn an_object_is_compared_whole() {
        let place = |kind: &str| Place { kind: kind.into(), namespace: "shop".into(), name: "q".into() };
        let wanted = Wanted::Objects(vec![place("resourcequota"), place("deployment")]);
        assert!(wanted.is(&named("ResourceQuota", "q")) && wanted.is(&named("Deployment", "q")));
        assert!(!wanted.is(&named("Pod", "q")) && !wanted.is(&named("Deployment", "p")));
        assert!(!wanted.is(&Named { namespace: String::new(), ..named("Deployment", "q") }));
    }
}
