//! Counters of the machine's network: what was dropped, where and why. Cumulative, as the kernel keeps them.
//!
//! | metric | attributes | source |
//! |---|---|---|
//! | `system.network.io`, `.packets`, `.errors`, `.dropped` | `network.interface.name`, `network.io.direction` (`receive`, `transmit`) | `net/dev` |
//! | `system.network.stack.dropped` | `reason` | `net/snmp`, `net/netstat`, `net/softnet_stat`, `net/stat/{arp_cache,ndisc_cache,nf_conntrack}` |
//! | `system.network.tcp.segments.{sent,retransmitted}`, `system.network.tcp.connections.{reset,failed}` | | `net/snmp` |
//!
//! Reasons: `listen_overflow` (a program does not accept fast enough), `listen_other`, `request_queue_full`,
//! `tcp_backlog_full`, `tcp_receive_queue_full`, `udp_receive_buffer_full`, `ip_receive`, `ip_transmit`,
//! `softnet_backlog_full`, `packet_too_big` (it would have to be split, and says that it must not be),
//! `neighbour_table_full`, `neighbour6_table_full`, `conntrack_full`, `conntrack_drop`. The last two are one counter of the
//! kernel, split by whether the table of connections is almost full at the time, and begin at zero with the collector: the
//! kernel also counts there what it drops when two packets of one new connection race each other.
//!
//! `net/dev` has the counters of `/sys/class/net/*/statistics` in one file, and of the namespace whose directory is read,
//! not of the mount. What a kernel does not count is absent, never zero.

mod config;
mod parse;
mod sampler;

use tapio_schemas::ids::UnixNanos;

use super::sampling::{Look, Looks};
use super::status::CollectorState;

pub use config::NetworkConfig;
pub use sampler::Sampler;

impl Looks for Sampler {
    const LIMIT: &'static str = "network.interfaces_max";

    fn look(&mut self, at: UnixNanos) -> Look {
        let events = self.sample(at);
        let state = match self.blind() {
            Some(reason) => CollectorState::Degraded(reason.to_owned()),
            // Those of containers come and go, and a machine may have any number of them.
            None if self.leaves_out_own() => CollectorState::Degraded(
                "some of the machine's own interfaces are left out: raise network.interfaces_max".to_owned(),
            ),
            None => CollectorState::Running,
        };
        Look { events, left_out: self.left_out(), state }
    }
}
