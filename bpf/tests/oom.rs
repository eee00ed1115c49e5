//! A real process that really runs out of memory in a real cgroup.

mod support;

use std::os::unix::process::ExitStatusExt;

use support::{Watch, cgroup::MemoryCgroup, child, exits, signals, victims};

const LIMIT_BYTES: u64 = 32 << 20;
const SIGKILL: u8 = 9;

#[test]
fn the_victim_is_named_with_its_memory_and_its_memory_cgroup() {
    let mut watch = Watch::start();
    let cgroup = MemoryCgroup::new("oom", LIMIT_BYTES);
    let ended = child::prepared(
        &format!("echo $$ > {}; echo 321 > /proc/self/oom_score_adj", cgroup.processes_file()),
        "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
    );
    assert_eq!(ended.status.signal(), Some(i32::from(SIGKILL)), "{}", ended.stderr);
    watch.settle();

    let records = watch.of_pid(ended.pid);
    let victim = victims(&records);
    assert_eq!(victim.len(), 1, "one kill, one victim: {records:?}");
    let victim = &victim[0];
    assert!(!victim.pid_only);
    assert!((LIMIT_BYTES / 2..=LIMIT_BYTES).contains(&victim.anon_rss_bytes), "{victim:?}");
    assert!(victim.total_vm_bytes > victim.anon_rss_bytes, "{victim:?}");
    assert!(victim.file_rss_bytes > 0 && victim.page_table_bytes > 0, "{victim:?}");
    assert_eq!(victim.oom_score_adj, 321);

    let killed = signals(&records);
    assert_eq!(killed.len(), 1);
    assert_eq!((killed[0].signal, killed[0].sender), (SIGKILL, None), "the kernel kills");
    let exit = exits(&records);
    assert_eq!(exit.len(), 1);
    assert_eq!(exit[0].signal, Some(SIGKILL));
    assert!(exit[0].max_rss_bytes >= victim.anon_rss_bytes, "{exit:?}");

    // It joined the cgroup before it became Python, so all later records have it, the exit too.
    for record in records.iter().filter(|record| !matches!(record.body, tapio_bpf::Body::Exec(_))) {
        assert_eq!(record.owner.memory_cgroup_id, Some(cgroup.id()), "{record:?}");
        assert!(
            record.owner.process.expect("a process").comm.to_string().starts_with("python"),
            "{record:?}"
        );
        assert!(record.owner.cgroup_id.is_some(), "every process is in the default hierarchy");
    }
}

#[test]
fn a_process_elsewhere_has_another_memory_cgroup() {
    let mut watch = Watch::start();
    let cgroup = MemoryCgroup::new("other", LIMIT_BYTES);
    let outside = child::run("true", &[]);
    let inside = child::prepared(&format!("echo $$ > {}", cgroup.processes_file()), "").ok().pid;
    watch.settle();
    let memory_cgroup = |pid| watch.of_pid(pid).last().expect("an exit").owner.memory_cgroup_id;
    assert_eq!(memory_cgroup(inside), Some(cgroup.id()));
    assert!(memory_cgroup(outside).is_some_and(|id| id != cgroup.id()));
}
