/* SPDX-License-Identifier: GPL-2.0 */
/* Signals that end processes, with who sent them. */
#ifndef TAPIO_SIGNAL_H
#define TAPIO_SIGNAL_H

/* Bit n - 1 = report signal n. The loader sets the configured mask before the program is loaded. */
const volatile __u64 tapio_signal_mask = ~0ull;

enum {
	SI_USER = 0,
	SI_QUEUE = -1,
	SI_TKILL = -6,
	SI_KERNEL = 0x80,
};

/* Values the kernel passes in place of a pointer to a signal's info. */
enum {
	SEND_SIG_NOINFO = 0,
	SEND_SIG_PRIV = 1,
};

/* A process sends a signal in its own system call; only then is `current` the sender. */
static __always_inline bool tapio_sent_by_process(int code)
{
	return code == SI_USER || code == SI_QUEUE || code == SI_TKILL;
}

static __always_inline void tapio_set_sender(struct tapio_signal *body)
{
	struct task_struct *sender = (struct task_struct *)bpf_get_current_task();

	if (BPF_CORE_READ(sender, flags) & PF_KTHREAD)
		return;
	body->sender_pid = BPF_CORE_READ(sender, tgid);
	body->sender_cgroup_id = tapio_cgroup_of(sender);
	sender = BPF_CORE_READ(sender, group_leader);
	bpf_core_read(body->sender_comm, sizeof(body->sender_comm), &sender->comm);
}

SEC("tp_btf/signal_generate")
int tapio_signal(__u64 *ctx)
{
	struct {
		struct tapio_header header;
		struct tapio_signal body;
	} *record;
	/* Read as numbers, because the info "pointer" may be 0 or 1, which the verifier's type of the argument denies. */
	__u64 arguments[5] = {};
	struct kernel_siginfo *info;
	__u32 signal = (__u32)ctx[0];
	int code;

	if (signal < 1 || signal > 64 || !(tapio_signal_mask & (1ull << (signal - 1))))
		return 0;
	bpf_probe_read_kernel(arguments, sizeof(arguments), ctx);
	info = (struct kernel_siginfo *)arguments[1];
	if (arguments[1] == SEND_SIG_NOINFO)
		code = SI_USER;
	else if (arguments[1] == SEND_SIG_PRIV)
		code = SI_KERNEL;
	else
		code = BPF_CORE_READ(info, si_code);

	record = tapio_reserve(TAPIO_KIND_SIGNAL, TAPIO_PROGRAM_SIGNAL, sizeof(*record), TAPIO_NEWS);
	if (!record)
		return 0;
	tapio_set_owner_task(&record->header, (struct task_struct *)arguments[2]);
	record->body.signal = signal;
	record->body.code = code;
	record->body.to_group = (__u32)arguments[3] != 0;
	record->body.result = (__u32)arguments[4];
	if (tapio_sent_by_process(code))
		tapio_set_sender(&record->body);
	tapio_submit(&record->header);
	return 0;
}

#endif
