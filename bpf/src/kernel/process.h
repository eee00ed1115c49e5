/* SPDX-License-Identifier: GPL-2.0 */
/* Processes that begin a program and processes that end. */
#ifndef TAPIO_PROCESS_H
#define TAPIO_PROCESS_H

#define SIGNAL_GROUP_EXIT 0x4u

SEC("tp_btf/sched_process_exec")
int tapio_exec(__u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct linux_binprm *program = (struct linux_binprm *)ctx[2];
	struct {
		struct tapio_header header;
		struct tapio_exec body;
	} *record;
	long length;

	record = tapio_reserve(TAPIO_KIND_EXEC, TAPIO_PROGRAM_EXEC, sizeof(*record), TAPIO_ROUTINE);
	if (!record)
		return 0;
	tapio_set_owner_task(&record->header, task);
	record->body.parent_pid = BPF_CORE_READ(task, real_parent, tgid);
	length = bpf_probe_read_kernel_str(record->body.filename, sizeof(record->body.filename),
					   BPF_CORE_READ(program, filename));
	record->body.filename_bytes = length > 0 ? length - 1 : 0;
	tapio_submit(&record->header);
	return 0;
}

struct tapio_process_key {
	__u64 start_boot_ns;
	__u64 pid;
};

/* Processes whose end was reported: two threads that end together may both see that none is left. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct tapio_process_key);
	__type(value, __u8);
} tapio_ended SEC(".maps");

/* True once per process, when its last thread ends. The leader may end long before its other threads. */
static __always_inline bool tapio_process_ends(struct task_struct *task)
{
	struct tapio_process_key key = {};
	__u8 seen = 1;

	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		return false;
	if (BPF_CORE_READ(task, signal, live.counter) != 0)
		return false;
	key.start_boot_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	key.pid = BPF_CORE_READ(task, tgid);
	return bpf_map_update_elem(&tapio_ended, &key, &seen, BPF_NOEXIST) == 0;
}

SEC("tp_btf/sched_process_exit")
int tapio_exit(__u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct {
		struct tapio_header header;
		struct tapio_exit body;
	} *record;
	int code;

	if (!tapio_process_ends(task))
		return 0;
	/* What wait(2) gives: the group's code when all threads were told to end, else the leader's. */
	if (BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT)
		code = BPF_CORE_READ(task, signal, group_exit_code);
	else
		code = BPF_CORE_READ(task, group_leader, exit_code);
	record = tapio_reserve(TAPIO_KIND_EXIT, TAPIO_PROGRAM_EXIT, sizeof(*record), code ? TAPIO_NEWS : TAPIO_ROUTINE);
	if (!record)
		return 0;
	tapio_set_owner_task(&record->header, task);
	record->body.parent_pid = BPF_CORE_READ(task, real_parent, tgid);
	record->body.status = (code >> 8) & 0xff;
	record->body.signal = code & 0x7f;
	record->body.core_dumped = (code & 0x80) != 0;
	record->body.max_rss_pages = BPF_CORE_READ(task, signal, maxrss);
	tapio_submit(&record->header);
	return 0;
}

#endif
