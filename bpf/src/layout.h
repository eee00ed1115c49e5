/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The contract between the kernel programs and user space. Its other half is `layout.rs`, side by side with this file:
 * change both or neither. Every record in the ring is one `tapio_header` followed by the body of its kind. All padding
 * is explicit and zero; all integers are in host order, ports too; addresses are in network order and always sixteen
 * bytes, an IPv4 address as `::ffff:a.b.c.d`.
 */
#ifndef TAPIO_LAYOUT_H
#define TAPIO_LAYOUT_H

#define TAPIO_COMM_BYTES 16
#define TAPIO_FILENAME_BYTES 256

enum tapio_kind {
	TAPIO_KIND_EXEC = 1,
	TAPIO_KIND_EXIT = 2,
	TAPIO_KIND_OOM_VICTIM = 3,
	TAPIO_KIND_SIGNAL = 4,
	TAPIO_KIND_TCP_CONNECT_BEGIN = 5,
	TAPIO_KIND_TCP_CONNECT_END = 6,
	TAPIO_KIND_TCP_ACCEPTED = 7,
	TAPIO_KIND_TCP_CLOSED = 8,
	TAPIO_KIND_TCP_RETRANSMIT = 9,
	TAPIO_KIND_TCP_RESET_SENT = 10,
	TAPIO_KIND_TCP_RESET_RECEIVED = 11,
};

/* Index of a program in the counters map. */
enum tapio_program {
	TAPIO_PROGRAM_EXEC = 0,
	TAPIO_PROGRAM_EXIT = 1,
	TAPIO_PROGRAM_OOM = 2,
	TAPIO_PROGRAM_SIGNAL = 3,
	TAPIO_PROGRAM_TCP_STATE = 4,
	TAPIO_PROGRAM_TCP_RETRANSMIT = 5,
	TAPIO_PROGRAM_TCP_SEND_RESET = 6,
	TAPIO_PROGRAM_TCP_RECEIVE_RESET = 7,
	TAPIO_PROGRAM_COUNT = 8,
};

/* 24 bytes; what the counters map holds per program and CPU. */
struct tapio_counters {
	__u64 submitted;
	__u64 full; /* lost, because the ring was full */
	__u64 shed; /* left out, to keep the last room for records that matter more */
};
_Static_assert(sizeof(struct tapio_counters) == 24, "layout.rs says 24");

/* Header flags: how far the attribution reaches. */
#define TAPIO_FLAG_PROCESS_KNOWN 1u /* pid, uid, comm and start time are those of the right process */
#define TAPIO_FLAG_VICTIM_PID_ONLY 2u /* an older kernel gave the victim's pid and nothing else */

enum tapio_connect_outcome {
	TAPIO_CONNECT_ESTABLISHED = 1,
	TAPIO_CONNECT_REFUSED = 2,
	TAPIO_CONNECT_TIMED_OUT = 3,
	TAPIO_CONNECT_RESET = 4,
	TAPIO_CONNECT_UNREACHABLE = 5,
	TAPIO_CONNECT_ABORTED = 6, /* closed or disconnected here before an answer came */
	TAPIO_CONNECT_LOCAL_ERROR = 7, /* connect() itself failed here, for example no free port */
	TAPIO_CONNECT_FAILED = 8, /* any other socket error, see `error` */
};

enum tapio_close_reason {
	TAPIO_CLOSE_FINISHED = 1, /* both sides said FIN */
	TAPIO_CLOSE_RESET_BY_PEER = 2,
	TAPIO_CLOSE_TIMED_OUT = 3,
	TAPIO_CLOSE_ABORTED = 4, /* this side dropped it: linger 0, unread data, disconnect */
	TAPIO_CLOSE_FAILED = 5, /* any other socket error, see `error` */
};

enum tapio_direction {
	TAPIO_DIRECTION_UNKNOWN = 0, /* the connection is older than the programs */
	TAPIO_DIRECTION_OUTBOUND = 1,
	TAPIO_DIRECTION_INBOUND = 2,
};

/* 72 bytes */
struct tapio_header {
	__u16 kind; /* enum tapio_kind */
	__u16 program; /* enum tapio_program */
	__u32 length; /* bytes of the whole record, header included */
	__u64 boot_ns; /* CLOCK_BOOTTIME */
	__u64 cgroup_id; /* in the default (v2) hierarchy; 0 = unknown */
	__u64 memory_cgroup_id; /* where memory is charged, v1 or v2; 0 = unknown */
	__u64 start_boot_ns; /* start of the process, CLOCK_BOOTTIME: with pid an identity */
	__u32 pid; /* thread group id in the initial pid namespace */
	__u32 tid;
	__u32 uid; /* in the initial user namespace */
	__u32 flags; /* TAPIO_FLAG_* */
	char comm[TAPIO_COMM_BYTES]; /* NUL-padded */
};
_Static_assert(sizeof(struct tapio_header) == 72, "layout.rs says 72");

/* 264 bytes */
struct tapio_exec {
	__u32 parent_pid;
	__u32 filename_bytes; /* without NUL; TAPIO_FILENAME_BYTES - 1 = maybe cut */
	char filename[TAPIO_FILENAME_BYTES];
};
_Static_assert(sizeof(struct tapio_exec) == 264, "layout.rs says 264");

/* 24 bytes */
struct tapio_exit {
	__u32 parent_pid;
	__s32 status; /* exit(status), 0..=255 */
	__u32 signal; /* the killing signal, 0 = none */
	__u32 core_dumped;
	__u64 max_rss_pages; /* high water mark of the process */
};
_Static_assert(sizeof(struct tapio_exit) == 24, "layout.rs says 24");

/* 48 bytes */
struct tapio_oom_victim {
	__u64 total_vm_pages;
	__u64 anon_rss_pages;
	__u64 file_rss_pages;
	__u64 shmem_rss_pages;
	__u64 page_table_bytes;
	__s32 oom_score_adj;
	__u32 padding;
};
_Static_assert(sizeof(struct tapio_oom_victim) == 48, "layout.rs says 48");

/* 48 bytes; the header describes the target */
struct tapio_signal {
	__s32 signal;
	__s32 code; /* si_code */
	__u32 sender_pid; /* 0 = the kernel */
	__u32 to_group; /* 1 = the whole process, 0 = one thread */
	__u32 result; /* 0 delivered, 1 ignored, 2 already pending, 3 overflow, 4 info lost */
	__u32 padding;
	__u64 sender_cgroup_id;
	char sender_comm[TAPIO_COMM_BYTES];
};
_Static_assert(sizeof(struct tapio_signal) == 48, "layout.rs says 48");

/* 48 bytes */
struct tapio_tuple {
	__u8 local_address[16];
	__u8 remote_address[16];
	__u16 local_port;
	__u16 remote_port;
	__u32 network_namespace; /* inode number */
	__u64 socket; /* opaque, the same for all records of one socket's life */
};
_Static_assert(sizeof(struct tapio_tuple) == 48, "layout.rs says 48");

/* 48 bytes */
struct tapio_tcp_connect_begin {
	struct tapio_tuple tuple; /* the local port may still be 0 */
};
_Static_assert(sizeof(struct tapio_tcp_connect_begin) == 48, "layout.rs says 48");

/* 64 bytes */
struct tapio_tcp_connect_end {
	struct tapio_tuple tuple;
	__u64 latency_ns; /* from the first SYN; 0 = begin not seen */
	__s32 error; /* sk_err, an errno; 0 = none */
	__u8 outcome; /* enum tapio_connect_outcome */
	__u8 padding[3];
};
_Static_assert(sizeof(struct tapio_tcp_connect_end) == 64, "layout.rs says 64");

/* 48 bytes */
struct tapio_tcp_accepted {
	struct tapio_tuple tuple;
};
_Static_assert(sizeof(struct tapio_tcp_accepted) == 48, "layout.rs says 48");

/* 88 bytes */
struct tapio_tcp_closed {
	struct tapio_tuple tuple;
	__u64 duration_ns; /* since established; 0 = not seen */
	__u64 bytes_acked; /* sent here and acknowledged there */
	__u64 bytes_received;
	__u32 smoothed_rtt_us;
	__u32 retransmits;
	__s32 error; /* sk_err */
	__u8 reason; /* enum tapio_close_reason */
	__u8 direction; /* enum tapio_direction */
	__u8 old_state;
	__u8 padding;
};
_Static_assert(sizeof(struct tapio_tcp_closed) == 88, "layout.rs says 88");

/* 56 bytes */
struct tapio_tcp_retransmit {
	struct tapio_tuple tuple;
	__u32 total; /* segments retransmitted in this socket's life, this one included */
	__u8 state; /* TCP state, 2 = SYN_SENT, 1 = ESTABLISHED */
	__u8 consecutive; /* timeouts in a row without progress */
	__u8 direction;
	__u8 padding;
};
_Static_assert(sizeof(struct tapio_tcp_retransmit) == 56, "layout.rs says 56");

/* 56 bytes, for resets sent and received */
struct tapio_tcp_reset {
	struct tapio_tuple tuple; /* socket = 0: no socket, the port is closed */
	__u8 state; /* TCP state at that moment, 0 = no socket, 7 = just dropped here */
	__u8 direction;
	__u8 padding[6];
};
_Static_assert(sizeof(struct tapio_tcp_reset) == 56, "layout.rs says 56");

#endif
