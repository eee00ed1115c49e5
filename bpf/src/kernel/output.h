/* SPDX-License-Identifier: GPL-2.0 */
/* The one ring all programs write to, and the count of what each wrote and lost. */
#ifndef TAPIO_OUTPUT_H
#define TAPIO_OUTPUT_H

/* The size is a default; the loader sets the configured one. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} tapio_events SEC(".maps");

/*
 * Bytes waiting in the ring beyond which routine records (a process begins, a connection is made or ends well, a segment
 * goes again) are left out, so that a flood of them does not hide a crash. The loader sets it from the ring's size.
 */
const volatile __u64 tapio_shed_bytes = 768 * 1024;

enum tapio_weight {
	TAPIO_ROUTINE,
	TAPIO_NEWS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TAPIO_PROGRAM_COUNT);
	__type(key, __u32);
	__type(value, struct tapio_counters);
} tapio_counts SEC(".maps");

/* An interrupt may run another program on this CPU between load and store, so even per-CPU counts are added atomically. */
static __always_inline struct tapio_counters *tapio_counters_of(__u32 program)
{
	return bpf_map_lookup_elem(&tapio_counts, &program);
}

/* Room for one record, zeroed, header begun; NULL when there is none, which is counted. */
static __always_inline void *tapio_reserve(__u16 kind, __u16 program, __u32 length, enum tapio_weight weight)
{
	struct tapio_counters *counters = tapio_counters_of(program);
	struct tapio_header *header;

	if (!counters)
		return 0;
	if (weight == TAPIO_ROUTINE && bpf_ringbuf_query(&tapio_events, BPF_RB_AVAIL_DATA) > tapio_shed_bytes) {
		__sync_fetch_and_add(&counters->shed, 1);
		return 0;
	}
	header = bpf_ringbuf_reserve(&tapio_events, length, 0);
	if (!header) {
		__sync_fetch_and_add(&counters->full, 1);
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
	struct tapio_counters *counters = tapio_counters_of(header->program);

	if (counters)
		__sync_fetch_and_add(&counters->submitted, 1);
	bpf_ringbuf_submit(header, 0);
}

#endif
