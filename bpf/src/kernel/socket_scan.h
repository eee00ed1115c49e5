/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The sockets that were there before the programs: once, after the others are attached, the loader walks all open files
 * and remembers whose each TCP socket is. The kernel's own walk costs a fraction of reading /proc and misses no namespace.
 */
#ifndef TAPIO_SOCKET_SCAN_H
#define TAPIO_SOCKET_SCAN_H

SEC("iter/task_file")
int tapio_socket_scan(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct tapio_connection connection = {};
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;
	__u64 key;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = BPF_CORE_READ(socket, sk);
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	switch (BPF_CORE_READ(sk, __sk_common.skc_state)) {
	case TCP_LISTEN:
		tapio_remember_listener(sk, task, BPF_NOEXIST);
		return 0;
	case TCP_CLOSE:
		return 0;
	case TCP_SYN_SENT:
		connection.direction = TAPIO_DIRECTION_OUTBOUND;
		break;
	}
	/* What an attached program saw in the meantime is better; of several processes with the socket the first stays. */
	key = (__u64)sk;
	tapio_owner_of_task(&connection.owner, task);
	bpf_map_update_elem(&tapio_connections, &key, &connection, BPF_NOEXIST);
	return 0;
}

#endif
