/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What is known of a TCP socket: its addresses, and whose it is. Most TCP tracepoints fire in interrupt context, where
 * `current` is whoever was interrupted. So the owner is taken once where the socket's own process runs, in connect() and
 * listen(), and remembered by socket.
 */
#ifndef TAPIO_SOCKET_H
#define TAPIO_SOCKET_H

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6

enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
};

struct tapio_connection {
	struct tapio_owner owner;
	__u64 begin_boot_ns;
	__u64 established_boot_ns; /* 0 = not yet */
	__u8 direction; /* enum tapio_direction */
	__u8 reset_received;
	__u8 padding[6];
};

/* Connections by socket. The size is a default; the loader sets the configured one. Full: the least used is forgotten. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tapio_connection);
} tapio_connections SEC(".maps");

struct tapio_listener_key {
	__u8 address[16]; /* all zero = any address */
	__u32 network_namespace;
	__u16 port;
	__u16 padding;
};

struct tapio_listener {
	struct tapio_owner owner;
	__u64 socket;
};

/* Who listens where: a connection that comes in does not say which listener it came through. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct tapio_listener_key);
	__type(value, struct tapio_listener);
} tapio_listeners SEC(".maps");

static __always_inline __u16 tapio_host_order(__be16 port)
{
	return bpf_ntohs(port);
}

static __always_inline void tapio_map_ipv4(__u8 *address, __be32 ipv4)
{
	address[10] = 0xff;
	address[11] = 0xff;
	__builtin_memcpy(address + 12, &ipv4, sizeof(ipv4));
}

/* Every kind of socket begins with `sock_common`, the small ones of TIME_WAIT and half-open connections too. */
static __always_inline void tapio_set_tuple(struct tapio_tuple *tuple, struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	tuple->socket = (__u64)sk;
	tuple->network_namespace = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	tuple->remote_port = tapio_host_order(BPF_CORE_READ(sk, __sk_common.skc_dport));
	/* On the way to CLOSE the port number is already given back, but the source port still stands. */
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV)
		tuple->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	else
		tuple->local_port = tapio_host_order(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	if (family == AF_INET) {
		tapio_map_ipv4(tuple->local_address, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		tapio_map_ipv4(tuple->remote_address, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	} else if (family == AF_INET6) {
		bpf_core_read(tuple->local_address, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_core_read(tuple->remote_address, 16, &sk->__sk_common.skc_v6_daddr);
	}
}

/* The default-hierarchy cgroup a full socket belongs to; 0 where a v1 network class has taken its place. */
static __always_inline __u64 tapio_cgroup_of_socket(struct sock *sk)
{
	struct sock___before_5_15 *old = (void *)sk;
	__u64 word;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id);
	word = BPF_CORE_READ(old, sk_cgrp_data.val);
	if (word & 3)
		return 0;
	return BPF_CORE_READ((struct cgroup *)word, kn, id);
}

static __always_inline struct tapio_connection *tapio_find_connection(struct sock *sk)
{
	__u64 key = (__u64)sk;
	return bpf_map_lookup_elem(&tapio_connections, &key);
}

/* Owner of a full socket: the remembered process, or at least the socket's own cgroup. */
static __always_inline void tapio_set_owner_socket(struct tapio_header *header, const struct tapio_connection *connection,
						   struct sock *sk)
{
	if (connection)
		tapio_set_owner(header, &connection->owner);
	else
		header->cgroup_id = tapio_cgroup_of_socket(sk);
}

#endif
