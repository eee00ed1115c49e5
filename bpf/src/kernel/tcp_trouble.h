/* SPDX-License-Identifier: GPL-2.0 */
/* Segments sent again, and resets sent and received. */
#ifndef TAPIO_TCP_TROUBLE_H
#define TAPIO_TCP_TROUBLE_H

SEC("tp_btf/tcp_retransmit_skb")
int tapio_tcp_retransmit(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct tapio_connection *connection = tapio_find_connection(sk);
	struct {
		struct tapio_header header;
		struct tapio_tcp_retransmit body;
	} *record;

	record = tapio_reserve(TAPIO_KIND_TCP_RETRANSMIT, TAPIO_PROGRAM_TCP_RETRANSMIT, sizeof(*record), TAPIO_ROUTINE);
	if (!record)
		return 0;
	tapio_set_owner_socket(&record->header, connection, sk);
	tapio_set_tuple(&record->body.tuple, sk);
	record->body.total = BPF_CORE_READ((struct tcp_sock *)sk, total_retrans);
	record->body.state = BPF_CORE_READ(sk, __sk_common.skc_state);
	record->body.consecutive = BPF_CORE_READ((struct inet_connection_sock *)sk, icsk_retransmits);
	record->body.direction = connection ? connection->direction : TAPIO_DIRECTION_UNKNOWN;
	tapio_submit(&record->header);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int tapio_tcp_receive_reset(__u64 *ctx)
{
	struct sock *sk = (struct sock *)ctx[0];
	struct tapio_connection *connection = tapio_find_connection(sk);
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	struct {
		struct tapio_header header;
		struct tapio_tcp_reset body;
	} *record;

	if (connection)
		connection->reset_received = 1;
	/* During a handshake the reset is the refusal, which the end of the connect attempt tells. */
	if (state == TCP_SYN_SENT || state == TCP_SYN_RECV)
		return 0;
	record = tapio_reserve(TAPIO_KIND_TCP_RESET_RECEIVED, TAPIO_PROGRAM_TCP_RECEIVE_RESET, sizeof(*record),
			       TAPIO_NEWS);
	if (!record)
		return 0;
	tapio_set_owner_socket(&record->header, connection, sk);
	tapio_set_tuple(&record->body.tuple, sk);
	record->body.state = state;
	record->body.direction = connection ? connection->direction : TAPIO_DIRECTION_UNKNOWN;
	tapio_submit(&record->header);
	return 0;
}

/* Addresses of the packet that is answered with a reset: what it names as its destination is this side. */
static __always_inline void tapio_set_tuple_packet(struct tapio_tuple *tuple, struct sk_buff *packet)
{
	unsigned char *head = BPF_CORE_READ(packet, head);
	unsigned char *network = head + BPF_CORE_READ(packet, network_header);
	unsigned char *transport = head + BPF_CORE_READ(packet, transport_header);
	__be32 ipv4[2] = {};
	__be16 ports[2] = {};
	__u8 version = 0;

	bpf_probe_read_kernel(&version, sizeof(version), network);
	if (version >> 4 == 4) {
		bpf_probe_read_kernel(ipv4, sizeof(ipv4), network + 12);
		tapio_map_ipv4(tuple->remote_address, ipv4[0]);
		tapio_map_ipv4(tuple->local_address, ipv4[1]);
	} else if (version >> 4 == 6) {
		bpf_probe_read_kernel(tuple->remote_address, 16, network + 8);
		bpf_probe_read_kernel(tuple->local_address, 16, network + 24);
	}
	bpf_probe_read_kernel(ports, sizeof(ports), transport);
	tuple->remote_port = tapio_host_order(ports[0]);
	tuple->local_port = tapio_host_order(ports[1]);
	tuple->network_namespace = BPF_CORE_READ(packet, dev, nd_net.net, ns.inum);
}

SEC("tp_btf/tcp_send_reset")
int tapio_tcp_send_reset(__u64 *ctx)
{
	/* Read as numbers: either "pointer" may be NULL, which the verifier's type of the argument may deny. */
	__u64 arguments[2] = {};
	struct tapio_connection *connection = 0;
	struct sk_buff *packet;
	bool closed = false;
	struct sock *sk;
	struct {
		struct tapio_header header;
		struct tapio_tcp_reset body;
	} *record;

	bpf_probe_read_kernel(arguments, sizeof(arguments), ctx);
	sk = (struct sock *)arguments[0];
	packet = (struct sk_buff *)arguments[1];
	record = tapio_reserve(TAPIO_KIND_TCP_RESET_SENT, TAPIO_PROGRAM_TCP_SEND_RESET, sizeof(*record), TAPIO_NEWS);
	if (!record)
		return 0;
	if (sk) {
		record->body.state = BPF_CORE_READ(sk, __sk_common.skc_state);
		closed = record->body.state == TCP_CLOSE;
		tapio_set_tuple(&record->body.tuple, sk);
		/* TIME_WAIT and half-open sockets are too small to hold an owner. */
		if (record->body.state != TCP_TIME_WAIT && record->body.state != TCP_NEW_SYN_RECV) {
			connection = tapio_find_connection(sk);
			tapio_set_owner_socket(&record->header, connection, sk);
		}
		record->body.direction = connection ? connection->direction : TAPIO_DIRECTION_UNKNOWN;
	}
	if (packet)
		tapio_set_tuple_packet(&record->body.tuple, packet);
	tapio_submit(&record->header);
	/* The end of a connection dropped here was told before; its reset was what was left to tell. */
	if (connection && closed)
		bpf_map_delete_elem(&tapio_connections, &arguments[0]);
	return 0;
}

#endif
