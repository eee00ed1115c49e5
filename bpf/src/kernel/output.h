/* SPDX-License-Identifier: GPL-2.0 */
/* The one ring all programs write to, and the count of what each wrote and lost. */
#ifndef TAPIO_OUTPUT_H
#define TAPIO_OUTPUT_H

/* The size is a default; the loader sets the configured one. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} tapio_events SEC(".maps");

struct tapio_counters {
	__u64 submitted;
	__u64 lost;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TAPIO_PROGRAM_COUNT);
	__type(key, __u32);
	__type(value, struct tapio_counters);
} tapio_counts SEC(".maps");

/* An interrupt may run another program on this CPU between load and store, so even per-CPU counts are added atomically. */
static __always_inline void tapio_count(__u32 program, bool submitted)
{
	struct tapio_counters *counters = bpf_map_lookup_elem(&tapio_counts, &program);
	if (!counters)
		return;
	if (submitted)
		__sync_fetch_and_add(&counters->submitted, 1);
	else
		__sync_fetch_and_add(&counters->lost, 1);
}

/* Room for one record, zeroed, header begun; NULL when the ring is full, which is counted as lost. */
static __always_inline void *tapio_reserve(__u16 kind, __u16 program, __u32 length)
{
	struct tapio_header *header = bpf_ringbuf_reserve(&tapio_events, length, 0);
	if (!header) {
		tapio_count(program, false);
		return 0;
	}
	__builtin_memset(header, 0, length);
	header->kind = kind;
	header->program = program;
	header->length = length;
	header->boot_ns = bpf_ktime_get_boot_ns();
	return header;
}

static __always_inline void tapio_submit(struct tapio_header *header)
{
	tapio_count(header->program, true);
	bpf_ringbuf_submit(header, 0);
}

#endif
