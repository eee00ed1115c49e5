/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The life of TCP connections, from the kernel's own state machine. When this tracepoint fires the socket still has its
 * old state, and what ended it is already in `sk_err`: the kernel writes the error first (tcp_reset, tcp_write_err,
 * tcp_v4_err, tcp_done_with_error) and changes the state after.
 */
#ifndef TAPIO_TCP_STATE_H
#define TAPIO_TCP_STATE_H

#define SHUTDOWN_MASK 3

enum {
	EPIPE = 32,
	ENONET = 64,
	ENETDOWN = 100,
	ENETUNREACH = 101,
	ECONNABORTED = 103,
	ECONNRESET = 104,
	ETIMEDOUT = 110,
	ECONNREFUSED = 111,
	EHOSTDOWN = 112,
	EHOSTUNREACH = 113,
};

/* Whether an attempt is told when it begins as well. Its end tells all of it; the loader says who wants both. */
const volatile __u8 tapio_tell_connect_begin = 1;

/* connect() sends its SYN: process context, `current` is who connects. */
static __always_inline void tapio_connect_begins(struct sock *sk)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct tapio_connection connection = {};
	__u64 key = (__u64)sk;
	struct {
		struct tapio_header header;
		struct tapio_tcp_connect_begin body;
	} *record;

	connection.begin_boot_ns = bpf_ktime_get_boot_ns();
	connection.direction = TAPIO_DIRECTION_OUTBOUND;
	/* A kernel thread connects for somebody else, for whom the socket's cgroup is the better name. */
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		connection.owner.cgroup_id = tapio_cgroup_of_socket(sk);
	else
		tapio_owner_of_task(&connection.owner, task);
	bpf_map_update_elem(&tapio_connections, &key, &connection, BPF_ANY);

	if (!tapio_tell_connect_begin)
		return;
	record = tapio_reserve(TAPIO_KIND_TCP_CONNECT_BEGIN, TAPIO_PROGRAM_TCP_STATE, sizeof(*record), TAPIO_ROUTINE);
	if (!record)
		return;
	tapio_set_owner(&record->header, &connection.owner);
	tapio_set_tuple(&record->body.tuple, sk);
	tapio_submit(&record->header);
}

/* Why an attempt ended before it was established. */
static __always_inline __u8 tapio_connect_failure(struct sock *sk, const struct tapio_connection *connection,
						  int old_state, int error)
{
	if (BPF_CORE_READ(sk, sk_shutdown) == SHUTDOWN_MASK)
		return TAPIO_CONNECT_ABORTED;
	switch (error) {
	case ECONNREFUSED:
		return TAPIO_CONNECT_REFUSED;
	case ETIMEDOUT:
		return TAPIO_CONNECT_TIMED_OUT;
	case ECONNRESET:
		return TAPIO_CONNECT_RESET;
	case ENONET:
	case ENETDOWN:
	case ENETUNREACH:
	case EHOSTDOWN:
	case EHOSTUNREACH:
		return TAPIO_CONNECT_UNREACHABLE;
	case ECONNABORTED:
		return TAPIO_CONNECT_ABORTED;
	case 0:
		break;
	default:
		return TAPIO_CONNECT_FAILED;
	}
	/* Before 6.10 a waiting thread could read and so clear the error first; the reset itself was seen. */
	if (connection && connection->reset_received)
		return old_state == TCP_SYN_SENT ? TAPIO_CONNECT_REFUSED : TAPIO_CONNECT_RESET;
	/* Only while connect() is still in its first call is the socket not yet marked as connecting. */
	if (BPF_CORE_READ(sk, sk_socket, state) == SS_UNCONNECTED)
		return TAPIO_CONNECT_LOCAL_ERROR;
	return TAPIO_CONNECT_ABORTED;
}

static __always_inline void tapio_connect_ends(struct sock *sk, const struct tapio_connection *connection, __u8 outcome,
					       int error)
{
	struct {
		struct tapio_header header;
		struct tapio_tcp_connect_end body;
	} *record;

	record = tapio_reserve(TAPIO_KIND_TCP_CONNECT_END, TAPIO_PROGRAM_TCP_STATE, sizeof(*record),
			       outcome == TAPIO_CONNECT_ESTABLISHED ? TAPIO_ROUTINE : TAPIO_NEWS);
	if (!record)
		return;
	tapio_set_owner_socket(&record->header, connection, sk);
	tapio_set_tuple(&record->body.tuple, sk);
	if (connection && connection->begin_boot_ns && record->header.boot_ns > connection->begin_boot_ns)
		record->body.latency_ns = record->header.boot_ns - connection->begin_boot_ns;
	record->body.error = error;
	record->body.outcome = outcome;
	tapio_submit(&record->header);
}

static __always_inline void tapio_remember_listener(struct sock *sk, struct task_struct *task, __u64 flags)
{
	struct tapio_listener listener = {};
	struct tapio_listener_key key = {};
	__be32 ipv4;

	key.network_namespace = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	key.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6) {
		bpf_core_read(key.address, 16, &sk->__sk_common.skc_v6_rcv_saddr);
	} else {
		ipv4 = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		if (ipv4)
			tapio_map_ipv4(key.address, ipv4);
	}
	if (BPF_CORE_READ(task, flags) & PF_KTHREAD)
		listener.owner.cgroup_id = tapio_cgroup_of_socket(sk);
	else
		tapio_owner_of_task(&listener.owner, task);
	listener.socket = (__u64)sk;
	bpf_map_update_elem(&tapio_listeners, &key, &listener, flags);
}

static __always_inline void tapio_listen_ends(struct sock *sk)
{
	struct tapio_listener_key key = {};
	struct tapio_listener *listener;
	struct tapio_tuple tuple = {};

	tapio_set_tuple(&tuple, sk);
	key.network_namespace = tuple.network_namespace;
	key.port = tuple.local_port;
	/* The any address of IPv4 is kept as all zero, as that of IPv6 is. */
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6 || BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr))
		__builtin_memcpy(key.address, tuple.local_address, 16);
	listener = bpf_map_lookup_elem(&tapio_listeners, &key);
	/* Another socket may have taken the port over. */
	if (listener && listener->socket == (__u64)sk)
		bpf_map_delete_elem(&tapio_listeners, &key);
}

static __always_inline struct tapio_listener *tapio_find_listener(const struct tapio_tuple *tuple)
{
	struct tapio_listener_key key = {};
	struct tapio_listener *listener;

	key.network_namespace = tuple->network_namespace;
	key.port = tuple->local_port;
	__builtin_memcpy(key.address, tuple->local_address, 16);
	listener = bpf_map_lookup_elem(&tapio_listeners, &key);
	if (listener)
		return listener;
	__builtin_memset(key.address, 0, 16);
	return bpf_map_lookup_elem(&tapio_listeners, &key);
}

/* The third packet of a handshake came: interrupt context, the owner is the listener's. */
static __always_inline void tapio_accepted(struct sock *sk)
{
	struct tapio_connection connection = {};
	struct tapio_listener *listener;
	struct tapio_tuple tuple = {};
	__u64 key = (__u64)sk;
	struct {
		struct tapio_header header;
		struct tapio_tcp_accepted body;
	} *record;

	tapio_set_tuple(&tuple, sk);
	connection.begin_boot_ns = bpf_ktime_get_boot_ns();
	connection.established_boot_ns = connection.begin_boot_ns;
	connection.direction = TAPIO_DIRECTION_INBOUND;
	listener = tapio_find_listener(&tuple);
	if (listener)
		connection.owner = listener->owner;
	else
		connection.owner.cgroup_id = tapio_cgroup_of_socket(sk);
	bpf_map_update_elem(&tapio_connections, &key, &connection, BPF_ANY);

	record = tapio_reserve(TAPIO_KIND_TCP_ACCEPTED, TAPIO_PROGRAM_TCP_STATE, sizeof(*record), TAPIO_ROUTINE);
	if (!record)
		return;
	tapio_set_owner(&record->header, &connection.owner);
	record->body.tuple = tuple;
	tapio_submit(&record->header);
}

static __always_inline void tapio_established(struct sock *sk, int old_state)
{
	struct tapio_connection *connection = tapio_find_connection(sk);
	bool connecting = connection && connection->direction == TAPIO_DIRECTION_OUTBOUND;

	/* Two sides that connect to each other at once go through SYN_RECV as well. */
	if (old_state == TCP_SYN_RECV && !connecting) {
		tapio_accepted(sk);
		return;
	}
	if (connection)
		connection->established_boot_ns = bpf_ktime_get_boot_ns();
	tapio_connect_ends(sk, connection, TAPIO_CONNECT_ESTABLISHED, 0);
}

static __always_inline __u8 tapio_close_reason(const struct tapio_connection *connection, int old_state, int error)
{
	if ((connection && connection->reset_received) || error == ECONNRESET || error == EPIPE)
		return TAPIO_CLOSE_RESET_BY_PEER;
	if (error == ETIMEDOUT)
		return TAPIO_CLOSE_TIMED_OUT;
	if (error == ECONNABORTED)
		return TAPIO_CLOSE_ABORTED;
	if (error)
		return TAPIO_CLOSE_FAILED;
	if (old_state == TCP_FIN_WAIT2 || old_state == TCP_CLOSING || old_state == TCP_LAST_ACK)
		return TAPIO_CLOSE_FINISHED;
	return TAPIO_CLOSE_ABORTED;
}

static __always_inline void tapio_connection_closes(struct sock *sk, const struct tapio_connection *connection,
						    int old_state, int error, __u8 reason)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	struct {
		struct tapio_header header;
		struct tapio_tcp_closed body;
	} *record;

	record = tapio_reserve(TAPIO_KIND_TCP_CLOSED, TAPIO_PROGRAM_TCP_STATE, sizeof(*record),
			       reason == TAPIO_CLOSE_FINISHED ? TAPIO_ROUTINE : TAPIO_NEWS);
	if (!record)
		return;
	tapio_set_owner_socket(&record->header, connection, sk);
	tapio_set_tuple(&record->body.tuple, sk);
	if (connection) {
		record->body.direction = connection->direction;
		if (connection->established_boot_ns && record->header.boot_ns > connection->established_boot_ns)
			record->body.duration_ns = record->header.boot_ns - connection->established_boot_ns;
	}
	record->body.bytes_acked = BPF_CORE_READ(tcp, bytes_acked);
	record->body.bytes_received = BPF_CORE_READ(tcp, bytes_received);
	record->body.smoothed_rtt_us = BPF_CORE_READ(tcp, srtt_us) >> 3;
	record->body.retransmits = BPF_CORE_READ(tcp, total_retrans);
	record->body.error = error;
	record->body.reason = reason;
	record->body.old_state = old_state;
	tapio_submit(&record->header);
}

static __always_inline void tapio_closed(struct sock *sk, int old_state)
{
	struct tapio_connection *connection = tapio_find_connection(sk);
	int error = BPF_CORE_READ(sk, sk_err);
	__u64 key = (__u64)sk;
	__u8 reason;

	switch (old_state) {
	case TCP_SYN_SENT:
		tapio_connect_ends(sk, connection, tapio_connect_failure(sk, connection, old_state, error), error);
		break;
	case TCP_SYN_RECV:
		/* Only an attempt made here has an outcome to tell; one that came in was never established. */
		if (connection && connection->direction == TAPIO_DIRECTION_OUTBOUND)
			tapio_connect_ends(sk, connection, tapio_connect_failure(sk, connection, old_state, error),
					   error);
		break;
	case TCP_LISTEN:
		tapio_listen_ends(sk);
		return;
	case TCP_CLOSE:
		return;
	default:
		reason = tapio_close_reason(connection, old_state, error);
		tapio_connection_closes(sk, connection, old_state, error, reason);
		/* A connection dropped here sends its reset after this, from a socket still to be known. */
		if (reason == TAPIO_CLOSE_ABORTED)
			return;
	}
	bpf_map_delete_elem(&tapio_connections, &key);
}

SEC("tp_btf/inet_sock_set_state")
int tapio_tcp_state(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	int old_state = (int)ctx[1];
	int new_state = (int)ctx[2];

	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	switch (new_state) {
	case TCP_SYN_SENT:
		tapio_connect_begins(sk);
		break;
	case TCP_ESTABLISHED:
		tapio_established(sk, old_state);
		break;
	case TCP_LISTEN:
		/* listen(): process context, `current` is who listens. */
		tapio_remember_listener(sk, (struct task_struct *)bpf_get_current_task(), BPF_ANY);
		break;
	case TCP_CLOSE:
		tapio_closed(sk, old_state);
		break;
	}
	return 0;
}

#endif
