/* SPDX-License-Identifier: GPL-2.0 */
/* Who a record is about: a process and the two cgroups it is in, read from that process's own task. */
#ifndef TAPIO_OWNER_H
#define TAPIO_OWNER_H

#define PF_KTHREAD 0x00200000u

struct tapio_owner {
	__u64 cgroup_id;
	__u64 memory_cgroup_id;
	__u64 start_boot_ns;
	__u32 pid;
	__u32 tid;
	__u32 uid;
	__u32 flags;
	char comm[TAPIO_COMM_BYTES];
};

static __always_inline __u64 tapio_cgroup_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

/*
 * With cgroup v1 each controller has a tree of its own, so the memory cgroup is asked for by controller. With v2 this
 * gives the nearest ancestor where the memory controller is enabled: where the charge and the limit are.
 */
static __always_inline __u64 tapio_memory_cgroup_of(struct task_struct *task)
{
	struct cgroup_subsys_state *state = 0;
	struct css_set *set;
	__u64 index;

	if (!bpf_core_enum_value_exists(enum cgroup_subsys_id, memory_cgrp_id))
		return 0;
	index = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	set = BPF_CORE_READ(task, cgroups);
	bpf_probe_read_kernel(&state, sizeof(state), (void *)&set->subsys + index * sizeof(void *));
	return BPF_CORE_READ(state, cgroup, kn, id);
}

static __always_inline void tapio_owner_of_task(struct tapio_owner *owner, struct task_struct *task)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);

	owner->cgroup_id = tapio_cgroup_of(task);
	owner->memory_cgroup_id = tapio_memory_cgroup_of(task);
	owner->start_boot_ns = BPF_CORE_READ(leader, start_boottime);
	owner->pid = BPF_CORE_READ(task, tgid);
	owner->tid = BPF_CORE_READ(task, pid);
	owner->uid = BPF_CORE_READ(task, cred, uid.val);
	owner->flags = TAPIO_FLAG_PROCESS_KNOWN;
	bpf_core_read(owner->comm, sizeof(owner->comm), &leader->comm);
}

static __always_inline void tapio_set_owner(struct tapio_header *header, const struct tapio_owner *owner)
{
	header->cgroup_id = owner->cgroup_id;
	header->memory_cgroup_id = owner->memory_cgroup_id;
	header->start_boot_ns = owner->start_boot_ns;
	header->pid = owner->pid;
	header->tid = owner->tid;
	header->uid = owner->uid;
	header->flags = owner->flags;
	__builtin_memcpy(header->comm, owner->comm, sizeof(header->comm));
}

static __always_inline void tapio_set_owner_task(struct tapio_header *header, struct task_struct *task)
{
	struct tapio_owner owner = {};
	tapio_owner_of_task(&owner, task);
	tapio_set_owner(header, &owner);
}

#endif
