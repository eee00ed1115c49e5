//! Where the programs of a control plane are: in the directory `KUBEBUILDER_ASSETS` names, else in `PATH`.

use std::path::PathBuf;

/// A program of the control plane; one that is not there fails the test by name.
pub fn program(name: &str) -> PathBuf {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = assets.iter().cloned().chain(std::env::split_paths(&path)).map(|dir| dir.join(name));
    places.find(|file| file.is_file()).unwrap_or_else(|| {
        panic!(
            "{name} is neither in KUBEBUILDER_ASSETS ({}) nor in PATH: install the programs of a control plane \
             (kube-apiserver, kube-controller-manager, kube-scheduler, etcd, kubectl) and set KUBEBUILDER_ASSETS to \
             their directory",
            assets.map_or_else(|| "not set".to_owned(), |dir| dir.display().to_string())
        )
    })
}
