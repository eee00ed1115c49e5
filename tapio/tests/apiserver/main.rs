//! Tapio against a real Kubernetes control plane: `kube-apiserver` and `etcd`, with `kube-controller-manager` and
//! `kube-scheduler`, started on free ports in a temporary directory and killed at the end of each test.
//!
//! They run when they are asked for (`test = false` in the manifest), because few machines have the programs: `make
//! apiserver` fails, by name, when one is missing; `make test` runs them where all are found and says so where they are not.

mod api;
mod binaries;
mod certs;
#[path = "../common/mod.rs"]
mod common;
mod control;
mod failures;
mod fixing;
mod healthy;
mod image;
mod kubelet;
mod machine;
mod manifests;
mod outcome;
mod permissions;
mod plane;
mod process;
mod real;
mod running;
mod scenes;
mod told;
