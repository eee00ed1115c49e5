/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The few kernel types the programs read, written by hand and only with the fields used. `preserve_access_index` makes
 * clang record each access by name, and the loader rewrites the offset to what the running kernel's BTF says, so nothing
 * here states where a field lies. A `___suffix` is a flavour: the same kernel type as another release spells it.
 */
#ifndef TAPIO_VMLINUX_MIN_H
#define TAPIO_VMLINUX_MIN_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0

/* From the stable system-call interface. */
enum {
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum {
	BPF_RB_AVAIL_DATA = 0,
};
enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* Only the place of the memory controller is asked for; its value comes from the running kernel. */
enum cgroup_subsys_id {
	memory_cgrp_id = 4,
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};

typedef struct {
	__u32 val;
} kuid_t;

struct cred {
	kuid_t uid;
};

typedef struct {
	long counter;
} atomic_long_t;

typedef struct {
	int counter;
} atomic_t;

struct percpu_counter {
	__s64 count;
};

struct mm_struct {
	unsigned long total_vm;
	atomic_long_t pgtables_bytes;
	struct percpu_counter rss_stat[4];
};

/* Before 6.2. */
struct mm_rss_stat___before_6_2 {
	atomic_long_t count[4];
};

struct mm_struct___before_6_2 {
	struct mm_rss_stat___before_6_2 rss_stat;
};

struct signal_struct {
	atomic_t live;
	int group_exit_code;
	unsigned int flags;
	unsigned long maxrss;
	short oom_score_adj;
};

struct task_struct {
	unsigned int flags;
	int exit_code;
	int pid;
	int tgid;
	__u64 start_boottime;
	char comm[16];
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	const struct cred *cred;
	struct css_set *cgroups;
	struct mm_struct *mm;
	struct signal_struct *signal;
};

struct linux_binprm {
	const char *filename;
};

struct kernel_siginfo {
	int si_code;
};

/* The tracepoint's record grew these fields in 6.9, in the same change that turned its argument from pid to task. */
struct trace_event_raw_mark_victim {
	int pid;
	unsigned long total_vm;
};

struct ns_common {
	unsigned int inum;
};

struct net {
	struct ns_common ns;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* Before 5.15 the pointer shared its word with the v1 network class. */
struct sock_cgroup_data___before_5_15 {
	__u64 val;
};

typedef enum {
	SS_UNCONNECTED = 1,
} socket_state;

struct sock;

struct socket {
	socket_state state;
	struct sock *sk;
};

struct sock {
	struct sock_common __sk_common;
	int sk_err;
	__u8 sk_shutdown;
	__u16 sk_protocol;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
};

struct sock___before_5_15 {
	struct sock_cgroup_data___before_5_15 sk_cgrp_data;
};

struct inet_sock {
	__be16 inet_sport;
};

struct inet_connection_sock {
	__u8 icsk_retransmits;
};

struct tcp_sock {
	__u32 total_retrans;
	__u32 srtt_us;
	__u64 bytes_acked;
	__u64 bytes_received;
};

struct bpf_iter__task_file {
	struct task_struct *task;
	struct file *file;
};

struct net_device {
	possible_net_t nd_net;
};

struct sk_buff {
	struct net_device *dev;
	unsigned char *head;
	__u16 transport_header;
	__u16 network_header;
};

#pragma clang attribute pop

#endif
