//! Without rights nothing loads, and that is said clearly. A file of its own, because the loader library asks the kernel
//! once per process what it can do, and the answer for a thread without rights must not stand for the other tests.

mod support;

use std::thread;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use support::require_root;
use tapio_bpf::{BpfConfig, BpfError, Loader, probe};

/// Capabilities belong to threads: one thread gives up its own.
#[test]
fn without_rights_there_is_a_clear_line_and_no_panic() {
    require_root();
    thread::spawn(|| {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .expect("a thread may give up its capabilities");
        let error = Loader::new(BpfConfig::default()).load().unwrap_err();
        assert!(matches!(error, BpfError::NotPermitted { .. }), "{error:?}");
        let line = error.to_string();
        assert!(line.contains("run as root or with CAP_BPF and CAP_PERFMON"), "{line}");

        let found = probe();
        assert!(found.btf && !found.kernel_release.is_empty());
        assert!(!found.capabilities.suffice());
        assert!(found.capabilities.hint().is_some());
        assert!(matches!(found.programs, Err(BpfError::NotPermitted { .. })), "{:?}", found.programs);
    })
    .join()
    .expect("no panic");
}
