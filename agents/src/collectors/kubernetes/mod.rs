//! The Kubernetes collector: watches objects and events of a cluster, tells their changes, and knows which
//! container belongs to which workload. Without a cluster it is disabled, with the reason.

pub mod collector;
pub mod config;
mod consequences;
pub mod convert;
mod due;
pub mod ends;
mod follower;
mod hosts;
pub mod index;
mod json;
mod lasting;
mod lease;
pub mod objects;
pub mod owners;
pub mod pod;
mod pruned;
mod recorded;
mod reflector;
mod relations;
mod requests;
mod retell;
pub mod snapshot;
pub mod standing;
mod stock;
pub mod summary;
pub mod tracker;
mod versions;
mod waits;
mod watch;
pub mod watched;

// Names the version of the API that `kube` is built for.
use k8s_openapi as _;

pub use collector::{KubernetesCollector, Unavailable};
pub use config::{KubernetesConfig, WatchScope};
pub use convert::WatchType;
pub use index::PodIndex;
pub use recorded::RecordedCluster;
pub use snapshot::Snapshot;
pub use summary::NotAnObject;
pub use tracker::Tracker;
