/* SPDX-License-Identifier: GPL-2.0 */
/* All kernel programs of Tapio as one object, because they share one ring, one set of counters and one view of sockets. */
#include "vmlinux_min.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>

#include "../layout.h"
#include "output.h"
#include "owner.h"
#include "process.h"
#include "oom.h"
#include "signal.h"
#include "socket.h"
#include "tcp_state.h"
#include "tcp_trouble.h"
#include "socket_scan.h"

/* Most helpers that read kernel memory are open to GPL programs only. */
char LICENSE[] SEC("license") = "GPL";
