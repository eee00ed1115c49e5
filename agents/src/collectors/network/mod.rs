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
//! `neighbour_table_full`, `neighbour6_table_full`, `conntrack_full`. `net/dev` has the counters of `/sys/class/net/*/statistics` in one file, and of the namespace
//! whose directory is read, not of the mount. What a kernel does not count is absent, never zero.

mod config;
mod parse;
mod sampler;

use tapio_schemas::ids::UnixNanos;

use super::sampling::{Look, Looks};
use super::status::CollectorState;

pub use config::NetworkConfig;
pub use sampler::Sampler;

impl Looks for Sampler {
    fn look(&mut self, at: UnixNanos) -> Look {
        let events = self.sample(at);
        let state = match (self.blind(), self.left_out()) {
            (Some(reason), _) => CollectorState::Degraded(reason.to_owned()),
            (None, 0) => CollectorState::Running,
            // Without the number: interfaces come and go with containers.
            (None, _) => CollectorState::Degraded(
                "some interfaces are left out: raise network.interfaces_max".to_owned(),
            ),
        };
        Look { events, left_out: self.left_out(), state }
    }
}
