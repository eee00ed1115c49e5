//! When the server is ready: it wrote its ports, and greets with JetStream on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use super::keeper::Keeper;

/// Pause between two looks. The server gives no event to wait on.
const POLL_PERIOD: Duration = Duration::from_millis(5);
/// Time for one connection attempt.
const GREETING_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) enum Readiness {
    Ready(SocketAddr),
    Ended(String),
    TimedOut(Option<SocketAddr>),
}

/// Waits until the server greets. Blocks the thread.
pub(super) fn wait(keeper: &Keeper, ports_file: &Path, timeout: Duration) -> Readiness {
    let deadline = Instant::now() + timeout;
    let mut addr = None;
    loop {
        if let Some(status) = keeper.status() {
            return Readiness::Ended(status);
        }
        addr = addr.or_else(|| read_ports(ports_file));
        if let Some(addr) = addr.filter(greets_with_jetstream) {
            return Readiness::Ready(addr);
        }
        if Instant::now() >= deadline {
            return Readiness::TimedOut(addr);
        }
        std::thread::sleep(POLL_PERIOD);
    }
}

/// The file is `{"nats":["nats://127.0.0.1:34567"],…}`; it may be half written.
fn read_ports(path: &Path) -> Option<SocketAddr> {
    let json: serde_json::Value = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let urls = json.get("nats")?.as_array()?;
    urls.iter().find_map(|url| url.as_str()?.strip_prefix("nats://")?.parse().ok())
}

fn greets_with_jetstream(addr: &SocketAddr) -> bool {
    let greeting = || -> std::io::Result<String> {
        let stream = TcpStream::connect_timeout(addr, GREETING_TIMEOUT)?;
        stream.set_read_timeout(Some(GREETING_TIMEOUT))?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    let Ok(line) = greeting() else { return false };
    let info = line.strip_prefix("INFO ").and_then(|json| serde_json::from_str(json).ok());
    let jetstream = |info: serde_json::Value| info.get("jetstream")?.as_bool();
    info.and_then(jetstream).unwrap_or(false)
}
