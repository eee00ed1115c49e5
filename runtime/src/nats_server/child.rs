//! A running server.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::process::Signal;

use super::keeper::Keeper;
use super::ready::{self, Readiness};
use super::{Binary, ChildConfig, ClusterConfig, NatsServerError, find, url_of};

/// How much of the log an error shows.
const LOG_TAIL_BYTES: usize = 600;
/// The server starts a new log file at this size and keeps one old one.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// Time to end after SIGKILL: the kernel needs a moment for a large process.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_PERIOD: Duration = Duration::from_millis(2);

/// A nats-server process. Dropping it kills it; use [`Child::stop`] to end it well.
#[derive(Debug)]
pub struct Child {
    config: ChildConfig,
    binary: Binary,
    keeper: Keeper,
    addr: SocketAddr,
    /// Holds the lock of the data directory.
    _lock: File,
}

impl Child {
    /// Finds the binary, starts it and waits until it is ready. Blocks the thread for up to
    /// `ready_timeout`.
    ///
    /// # Errors
    /// [`NatsServerError`], which names what to do.
    pub fn start(config: ChildConfig) -> Result<Self, NatsServerError> {
        let binary = find()?;
        fs::create_dir_all(&config.data_dir)
            .map_err(|source| NatsServerError::Files { path: config.data_dir.clone(), source })?;
        let lock = lock(&config.data_dir)?;
        let (keeper, addr) = launch(&config, &binary)?;
        Ok(Self { config, binary, keeper, addr, _lock: lock })
    }

    /// URL for clients.
    pub fn url(&self) -> String {
        url_of(self.addr)
    }

    /// The bound address.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Process id of the current process.
    pub fn pid(&self) -> u32 {
        self.keeper.pid()
    }

    /// The binary it was started from.
    pub fn binary(&self) -> &Binary {
        &self.binary
    }

    /// Whether the process runs.
    pub fn is_running(&self) -> bool {
        self.keeper.is_running()
    }

    /// Waits until the process has ended, for whatever reason, and gives its exit status as text.
    pub async fn wait_exit(&self) -> String {
        self.keeper.wait().await
    }

    /// Ends it well: SIGTERM, and SIGKILL after `stop_timeout`. Blocks the thread. Idempotent.
    ///
    /// # Errors
    /// [`NatsServerError::DidNotEnd`].
    pub fn stop(&mut self) -> Result<(), NatsServerError> {
        self.keeper.signal(Signal::TERM);
        if wait_ended(&self.keeper, self.config.stop_timeout) {
            return Ok(());
        }
        tracing::warn!(pid = self.pid(), "nats-server did not stop in time and is killed");
        self.kill();
        if self.is_running() {
            return Err(NatsServerError::DidNotEnd { pid: self.pid() });
        }
        Ok(())
    }

    /// Ends it at once with SIGKILL and waits for the end. Idempotent.
    pub fn kill(&mut self) {
        self.keeper.signal(Signal::KILL);
        wait_ended(&self.keeper, KILL_TIMEOUT);
    }

    /// Starts it again on the same port and store; kills it first when it still runs. Blocks the
    /// thread.
    ///
    /// # Errors
    /// As [`Child::start`].
    pub fn restart(&mut self) -> Result<(), NatsServerError> {
        self.kill();
        self.config.port = self.addr.port();
        (self.keeper, self.addr) = launch(&self.config, &self.binary)?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

fn wait_ended(keeper: &Keeper, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while keeper.is_running() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_PERIOD);
    }
    true
}

fn lock(data_dir: &Path) -> Result<File, NatsServerError> {
    let path = data_dir.join("nats-server.lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| NatsServerError::Files { path: path.clone(), source })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(NatsServerError::Locked { path }),
        Err(error) => Err(NatsServerError::Files { path, source: error.into() }),
    }
}

fn launch(config: &ChildConfig, binary: &Binary) -> Result<(Keeper, SocketAddr), NatsServerError> {
    let files = Files::prepare(config)?;
    let mut command = Command::new(&binary.path);
    command.arg("--config").arg(&files.config).stdin(Stdio::null()).stdout(Stdio::null());
    let stderr = File::create(&files.stderr);
    let stderr = stderr.map_err(|source| NatsServerError::Files { path: files.stderr.clone(), source })?;
    command.stderr(stderr);
    let keeper = Keeper::start(command)
        .map_err(|source| NatsServerError::Spawn { path: binary.path.clone(), source })?;
    let name = binary.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ports = files.dir.join(format!("{name}_{}.ports", keeper.pid()));
    let outcome = ready::wait(&keeper, &ports, config.ready_timeout);
    let log = files.tail();
    match outcome {
        Readiness::Ready(addr) => Ok((keeper, addr)),
        Readiness::Ended(_) if log.contains("address already in use") => {
            Err(NatsServerError::PortInUse { host: config.host.clone(), port: config.port })
        }
        Readiness::Ended(status) => Err(NatsServerError::EndedEarly { status, log }),
        Readiness::TimedOut(addr) => {
            keeper.signal(Signal::KILL);
            wait_ended(&keeper, KILL_TIMEOUT);
            let at = addr.map(|addr| format!(" at {addr}")).unwrap_or_default();
            Err(NatsServerError::NotReady { timeout: config.ready_timeout, at, log })
        }
    }
}

/// The files of a server, all in its data directory.
struct Files {
    dir: PathBuf,
    config: PathBuf,
    log: PathBuf,
    stderr: PathBuf,
}

impl Files {
    fn prepare(config: &ChildConfig) -> Result<Self, NatsServerError> {
        let dir = fs::canonicalize(&config.data_dir)
            .map_err(|source| NatsServerError::Files { path: config.data_dir.clone(), source })?;
        let files = Self {
            config: dir.join("nats-server.conf"),
            log: dir.join("nats-server.log"),
            stderr: dir.join("nats-server.stderr"),
            dir,
        };
        files
            .write_config(config)
            .map_err(|source| NatsServerError::Files { path: files.config.clone(), source })?;
        Ok(files)
    }

    fn write_config(&self, config: &ChildConfig) -> io::Result<()> {
        let port = if config.port == 0 { -1 } else { i32::from(config.port) };
        let mut text = format!(
            "# Written at every start.\n\
             host: {host}\nport: {port}\nmax_payload: {payload}\n\
             log_file: {log}\nlogfile_size_limit: {LOG_BYTES_MAX}\nlogfile_max_num: 2\n\
             ports_file_dir: {dir}\n\
             jetstream {{\n  store_dir: {dir}\n",
            host = quoted(&config.host),
            payload = config.max_payload.bytes(),
            log = quoted(&self.log.to_string_lossy()),
            dir = quoted(&self.dir.to_string_lossy()),
        );
        if config.max_store.bytes() > 0 {
            text.push_str(&format!("  max_file_store: {}\n", config.max_store.bytes()));
        }
        text.push_str("}\n");
        if let Some(cluster) = &config.cluster {
            text.push_str(&cluster_text(cluster, &config.host));
        }
        fs::write(&self.config, text)
    }

    /// The end of what the server said, in one line.
    fn tail(&self) -> String {
        let read = |path: &Path| fs::read(path).unwrap_or_default();
        let mut bytes = read(&self.log);
        bytes.extend(read(&self.stderr));
        let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
        String::from_utf8_lossy(&bytes[start..]).lines().collect::<Vec<_>>().join(" | ")
    }
}

fn cluster_text(cluster: &ClusterConfig, host: &str) -> String {
    let routes: Vec<_> = cluster.peers.iter().map(|port| format!("\"nats-route://{host}:{port}\"")).collect();
    format!(
        "server_name: {server}\ncluster {{\n  name: {name}\n  host: {host}\n  port: {port}\n  routes: [{routes}]\n}}\n",
        server = quoted(&cluster.server_name),
        name = quoted(&cluster.name),
        host = quoted(host),
        port = cluster.port,
        routes = routes.join(", "),
    )
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
