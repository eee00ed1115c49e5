/* SPDX-License-Identifier: GPL-2.0 */
/* The process the out-of-memory killer chose. The victim comes as an argument: `current` is only who asked for memory. */
#ifndef TAPIO_OOM_H
#define TAPIO_OOM_H

enum {
	MM_FILEPAGES = 0,
	MM_ANONPAGES = 1,
	MM_SHMEMPAGES = 3,
};

struct tapio_oom_record {
	struct tapio_header header;
	struct tapio_oom_victim body;
};

/*
 * Pages. Since 6.2 a per-CPU counter: exact to 32 pages, or twice the number of CPUs, per CPU. The step from one counter to
 * the next is asked of the running kernel by itself, because not every loader corrects it within an array.
 */
static __always_inline __u64 tapio_rss_pages(struct mm_struct *mm, const int member)
{
	__s64 pages;

	if (bpf_core_type_exists(struct mm_rss_stat___before_6_2)) {
		struct mm_struct___before_6_2 *old = (void *)mm;
		pages = BPF_CORE_READ(old, rss_stat.count[member].counter);
	} else {
		struct percpu_counter *counter =
			(void *)&mm->rss_stat + member * bpf_core_type_size(struct percpu_counter);
		pages = BPF_CORE_READ(counter, count);
	}
	return pages > 0 ? pages : 0;
}

static __always_inline void tapio_describe_victim(struct tapio_oom_record *record, struct task_struct *task)
{
	struct mm_struct *mm = BPF_CORE_READ(task, mm);

	tapio_set_owner_task(&record->header, task);
	record->body.oom_score_adj = BPF_CORE_READ(task, signal, oom_score_adj);
	record->body.total_vm_pages = BPF_CORE_READ(mm, total_vm);
	record->body.anon_rss_pages = tapio_rss_pages(mm, MM_ANONPAGES);
	record->body.file_rss_pages = tapio_rss_pages(mm, MM_FILEPAGES);
	record->body.shmem_rss_pages = tapio_rss_pages(mm, MM_SHMEMPAGES);
	record->body.page_table_bytes = BPF_CORE_READ(mm, pgtables_bytes.counter);
}

SEC("tp_btf/mark_victim")
int tapio_oom(__u64 *ctx)
{
	struct tapio_oom_record *record;

	record = tapio_reserve(TAPIO_KIND_OOM_VICTIM, TAPIO_PROGRAM_OOM, sizeof(*record), TAPIO_NEWS);
	if (!record)
		return 0;
	if (bpf_core_field_exists(((struct trace_event_raw_mark_victim *)0)->total_vm)) {
		tapio_describe_victim(record, (struct task_struct *)ctx[0]);
	} else {
		/* Before 6.9 the argument is the pid, and nothing leads from a pid to its task. */
		record->header.pid = ctx[0];
		record->header.tid = ctx[0];
		record->header.flags = TAPIO_FLAG_VICTIM_PID_ONLY;
	}
	tapio_submit(&record->header);
	return 0;
}

#endif
