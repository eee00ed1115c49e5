//! The contract between the kernel programs and user space. Its other half is `layout.h`, side by side with this file:
//! change both or neither.
//!
//! Every record in the ring is one [`Header`] followed by the body of its kind. All padding is explicit and zero; all
//! integers are in host order; addresses are in network order and always sixteen bytes. The structures here are never
//! read through a pointer: they give the decoder the offset of each field, and the sizes are asserted on both sides.

pub const COMM_BYTES: usize = 16;
pub const FILENAME_BYTES: usize = 256;

/// What the counters map holds per program and CPU, `struct tapio_counters`.
pub type Counters = [u64; 3];
pub const COUNTER_SUBMITTED: usize = 0;
pub const COUNTER_FULL: usize = 1;
pub const COUNTER_SHED: usize = 2;

pub const FLAG_PROCESS_KNOWN: u32 = 1;
pub const FLAG_VICTIM_PID_ONLY: u32 = 2;

/// What a record tells, `enum tapio_kind`.
pub mod kind {
    pub const EXEC: u16 = 1;
    pub const EXIT: u16 = 2;
    pub const OOM_VICTIM: u16 = 3;
    pub const SIGNAL: u16 = 4;
    pub const TCP_CONNECT_BEGIN: u16 = 5;
    pub const TCP_CONNECT_END: u16 = 6;
    pub const TCP_ACCEPTED: u16 = 7;
    pub const TCP_CLOSED: u16 = 8;
    pub const TCP_RETRANSMIT: u16 = 9;
    pub const TCP_RESET_SENT: u16 = 10;
    pub const TCP_RESET_RECEIVED: u16 = 11;
}

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident = $size:literal { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[allow(dead_code)]
        pub struct $name {
            $(pub $field: $type,)*
        }
        const _: () = assert!(size_of::<$name>() == $size, "layout.h states another size");
    };
}

layout!(
    /// What every record begins with.
    Header = 72 {
        kind: u16,
        program: u16,
        length: u32,
        boot_ns: u64,
        cgroup_id: u64,
        memory_cgroup_id: u64,
        start_boot_ns: u64,
        pid: u32,
        tid: u32,
        uid: u32,
        flags: u32,
        comm: [u8; COMM_BYTES],
    }
);

layout!(Exec = 264 {
    parent_pid: u32,
    filename_bytes: u32,
    filename: [u8; FILENAME_BYTES],
});

layout!(Exit = 24 {
    parent_pid: u32,
    status: i32,
    signal: u32,
    core_dumped: u32,
    max_rss_pages: u64,
});

layout!(OomVictim = 48 {
    total_vm_pages: u64,
    anon_rss_pages: u64,
    file_rss_pages: u64,
    shmem_rss_pages: u64,
    page_table_bytes: u64,
    oom_score_adj: i32,
    padding: u32,
});

layout!(Signal = 48 {
    signal: i32,
    code: i32,
    sender_pid: u32,
    to_group: u32,
    result: u32,
    padding: u32,
    sender_cgroup_id: u64,
    sender_comm: [u8; COMM_BYTES],
});

layout!(Tuple = 48 {
    local_address: [u8; 16],
    remote_address: [u8; 16],
    local_port: u16,
    remote_port: u16,
    network_namespace: u32,
    socket: u64,
});

layout!(TcpConnectBegin = 48 {
    tuple: Tuple,
});

layout!(TcpConnectEnd = 64 {
    tuple: Tuple,
    latency_ns: u64,
    error: i32,
    outcome: u8,
    padding: [u8; 3],
});

layout!(TcpAccepted = 48 {
    tuple: Tuple,
});

layout!(TcpClosed = 88 {
    tuple: Tuple,
    duration_ns: u64,
    bytes_acked: u64,
    bytes_received: u64,
    smoothed_rtt_us: u32,
    retransmits: u32,
    error: i32,
    reason: u8,
    direction: u8,
    old_state: u8,
    padding: u8,
});

layout!(TcpRetransmit = 56 {
    tuple: Tuple,
    total: u32,
    state: u8,
    consecutive: u8,
    direction: u8,
    padding: u8,
});

layout!(TcpReset = 56 {
    tuple: Tuple,
    state: u8,
    direction: u8,
    padding: [u8; 6],
});
