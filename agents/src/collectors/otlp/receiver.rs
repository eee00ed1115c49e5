//! The receiver as a whole: binds both ports, serves, drains.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use tapio_runtime::clock::SharedClock;
use tapio_runtime::supervise::{WorkerContext, WorkerResult};
use tapio_runtime::telemetry::Metrics;
use tokio::net::TcpListener;

use super::config::OtlpConfig;
use super::connections::{Limited, TIMED_OUT, TimedOut};
use super::http::Http;
use super::reception::{Bounds, Reception};
use super::{grpc, http};
use crate::sink::EventSink;

/// How often the receiver says that it lives.
const TICK: Duration = Duration::from_secs(1);

/// The receiver cannot start.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address} for OTLP over {protocol}: {source}; is another collector running? change `otlp.{key}`"
)]
pub struct BindError {
    address: String,
    protocol: &'static str,
    key: &'static str,
    source: io::Error,
}

/// A bound receiver. Its ports stay bound over restarts of [`OtlpReceiver::run`], so that clients only wait.
pub struct OtlpReceiver {
    config: OtlpConfig,
    grpc: StdListener,
    http: StdListener,
    grpc_addr: SocketAddr,
    http_addr: SocketAddr,
    reception: Arc<Reception>,
    timed_out: TimedOut,
}

impl OtlpReceiver {
    /// Binds both ports; connections wait in the kernel until [`OtlpReceiver::run`].
    ///
    /// # Errors
    /// When an address is in use or not an address of this machine.
    pub fn bind(
        config: OtlpConfig,
        bounds: Bounds,
        sink: EventSink,
        clock: SharedClock,
        metrics: &Metrics,
    ) -> Result<Self, BindError> {
        let (grpc, grpc_addr) = bind(&config.grpc_listen, "gRPC", "grpc_listen")?;
        let (http, http_addr) = bind(&config.http_listen, "HTTP", "http_listen")?;
        let reception = Arc::new(Reception::new(&config, bounds, sink, clock, metrics));
        let timed_out = metrics.shared("otlp_connections_timed_out", TIMED_OUT);
        Ok(Self { config, grpc, http, grpc_addr, http_addr, reception, timed_out })
    }

    /// Address of gRPC, with the real port.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// Address of HTTP, with the real port.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Serves until the context's shutdown, then answers the requests that are open, within `drain`.
    ///
    /// # Errors
    /// When one of the servers fails; both stop then and can be run again.
    pub async fn run(&self, context: WorkerContext) -> WorkerResult {
        // A child, so that the end of one server can end the other.
        let stop = context.shutdown.child();
        let message_max = usize::try_from(self.config.message_max.bytes()).unwrap_or(usize::MAX);
        let routes = Http {
            reception: Arc::clone(&self.reception),
            message_max,
            retry_after: self.config.retry_after.get(),
            clock: Arc::clone(&context.clock),
        };
        let grpc_listener = self.limited(&self.grpc)?;
        let grpc = grpc::serve(grpc_listener, Arc::clone(&self.reception), message_max, stop.clone());
        let http = http::serve(self.limited(&self.http)?, routes, stop.clone());
        let servers = async {
            let grpc = async { grpc.await.map_err(|error| WorkerFailure(error.into())) };
            tokio::try_join!(grpc, async {
                http.await;
                Ok(())
            })
        };
        tokio::pin!(servers);
        loop {
            tokio::select! {
                ended = &mut servers => return Ok(ended.map(|_| ())?),
                () = context.shutdown.wait() => break,
                () = context.clock.sleep(TICK) => context.progress.tick(),
            }
        }
        tokio::select! {
            ended = &mut servers => ended?,
            () = context.clock.sleep(self.config.drain.get()) => {
                tracing::warn!(limit = ?self.config.drain.get(), "otlp clients kept connections open beyond the drain limit");
                ((), ())
            }
        };
        Ok(())
    }

    fn limited(&self, listener: &StdListener) -> io::Result<Limited> {
        let listener = TcpListener::from_std(listener.try_clone()?)?;
        Ok(Limited::new(listener, self.config.connections_max, self.timed_out.clone()))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the gRPC server failed: {0}")]
struct WorkerFailure(Box<dyn std::error::Error + Send + Sync>);

fn bind(
    address: &str,
    protocol: &'static str,
    key: &'static str,
) -> Result<(StdListener, SocketAddr), BindError> {
    let bound = StdListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok((listener, addr))
    });
    bound.map_err(|source| BindError { address: address.to_owned(), protocol, key, source })
}
