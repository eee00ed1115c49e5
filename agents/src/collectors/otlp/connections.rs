//! A listener with a limit: connections beyond it wait in the kernel until another one ends. Who holds a place and says nothing
//! loses it, so that a few silent ones do not shut the port.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use futures::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tapio_runtime::shutdown::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::body::READ_TIMEOUT;
use super::tls::Tls;

/// The beginning of a connection, bytes: as long as what tells HTTP/2 from HTTP/1, and shorter than any request.
const BEGINNING_BYTES: usize = 24;
/// A client may keep an idle connection for this long, and take as long for the head of a request. Longer than the minute after
/// which many clients send again.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// What [`TimedOut`] counts.
pub const TIMED_OUT: &str = "Connections that were ended because nothing came, by what was waited for: a beginning, a handshake of TLS, \
    or the head of an HTTP/1 request, also the next one on an idle connection; HTTP/2 connections that answered no ping are not counted";

/// Connections that were ended because nothing came, by what did not.
pub type TimedOut = Family<[(&'static str, &'static str); 1], Counter>;

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// For the first bytes of a connection.
    beginning: Duration,
    /// For the head of a request.
    head: Duration,
}

/// A listener that hands out at most so many connections at once.
pub struct Limited {
    listener: TcpListener,
    places: Arc<Semaphore>,
    patience: Patience,
    timed_out: TimedOut,
    tls: Option<Tls>,
}

/// A connection that holds its place until it is dropped.
pub struct Connection {
    stream: TcpStream,
    beginning: Option<Beginning>,
    timed_out: TimedOut,
    _place: Option<OwnedSemaphorePermit>,
}

/// What a connection has still to say before it counts as one.
struct Beginning {
    bytes_left: usize,
    by: Pin<Box<Sleep>>,
}

impl Limited {
    /// At most `connections_max` connections, at least one.
    pub fn new(listener: TcpListener, connections_max: usize, timed_out: TimedOut) -> Self {
        let places = Arc::new(Semaphore::new(connections_max.max(1)));
        let patience = Patience { beginning: READ_TIMEOUT, head: HEAD_TIMEOUT };
        Self { listener, places, patience, timed_out, tls: None }
    }

    /// What [`Self::serve`] serves is encrypted, if so; it is HTTP/1 then.
    pub fn with_tls(self, tls: Option<Tls>) -> Self {
        Self { tls, ..self }
    }

    /// The connections as a stream, as the gRPC server takes them.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, |mut listener| async move {
            let connection = listener.accept().await;
            Some((Ok(connection), listener))
        })
    }

    /// Serves HTTP until `shutdown`, then finishes the requests that are open. Who drops it ends them.
    pub async fn serve(mut self, routes: Router, shutdown: Shutdown) {
        let mut server = Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(self.patience.head);
        server
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(self.patience.head)
            .keep_alive_timeout(self.patience.beginning);
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                connection = self.accept() => {
                    let (server, routes, shutdown) = (server.clone(), routes.clone(), shutdown.clone());
                    let (tls, patience) = (self.tls.clone(), self.patience.beginning);
                    open.spawn(async move {
                        let timed_out = connection.timed_out.clone();
                        let Some(tls) = tls else {
                            return one(server, connection, timed_out, routes, shutdown).await;
                        };
                        tokio::select! {
                            () = shutdown.wait() => {}
                            stream = encrypted(&tls, connection, patience) => if let Some(stream) = stream {
                                // Bytes of TLS are no beginning of a request, and nobody is waited for who does not say which HTTP
                                // it speaks. HTTP/2 is only spoken over TLS when it is offered, which it is not.
                                one(server.http1_only(), stream, timed_out, routes, shutdown).await;
                            }
                        }
                    });
                }
                Some(_) = open.join_next() => {}
                () = shutdown.wait() => break,
            }
        }
        drop(self);
        while open.join_next().await.is_some() {}
    }

    async fn accept(&mut self) -> Connection {
        // The semaphore is never closed, so there is always a place in the end.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        // Logs and retries errors, such as no more file descriptors.
        let (stream, _) = Listener::accept(&mut self.listener).await;
        // Answers are small; waiting to fill a packet only adds latency. Not vital when refused.
        let _ = stream.set_nodelay(true);
        let by = Box::pin(tokio::time::sleep(self.patience.beginning));
        let beginning = Some(Beginning { bytes_left: BEGINNING_BYTES, by });
        Connection { stream, beginning, timed_out: self.timed_out.clone(), _place: place }
    }
}

/// The connection once certificate and keys are agreed on; none when they are not in time.
async fn encrypted(tls: &Tls, connection: Connection, patience: Duration) -> Option<TlsStream<Connection>> {
    let timed_out = connection.timed_out.clone();
    let acceptor = match tls.acceptor().await {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::warn!(%error, "a connection is refused");
            return None;
        }
    };
    match tokio::time::timeout(patience, acceptor.accept(connection)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client that does not speak TLS, or refuses the certificate");
            None
        }
        Err(_) => {
            timed_out.get_or_create(&[("waited_for", "handshake")]).inc();
            None
        }
    }
}

/// One connection to its end.
async fn one<S>(
    server: Builder<TokioExecutor>,
    connection: S,
    timed_out: TimedOut,
    routes: Router,
    shutdown: Shutdown,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let served = server.serve_connection(TokioIo::new(connection), TowerToHyperService::new(routes));
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = shutdown.wait() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    // Other ends are the client's business.
    if ended.is_err_and(|error| error.downcast_ref().is_some_and(hyper::Error::is_timeout)) {
        timed_out.get_or_create(&[("waited_for", "head")]).inc();
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some(beginning) = &mut self.beginning else { return read };
        if read.is_ready() {
            let bytes = buffer.filled().len() - before;
            beginning.bytes_left = beginning.bytes_left.saturating_sub(bytes);
            if bytes == 0 || beginning.bytes_left == 0 {
                self.beginning = None;
            }
            return read;
        }
        if beginning.by.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.beginning = None;
        self.timed_out.get_or_create(&[("waited_for", "beginning")]).inc();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "it says nothing")))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    use axum::routing::get;
    use rustls::crypto::ring;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A listener with one place and little patience.
    async fn one_place() -> (Limited, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Patience { beginning: Duration::from_millis(200), head: Duration::from_millis(600) };
        (Limited { patience, ..Limited::new(listener, 1, TimedOut::default()) }, address)
    }

    fn count(timed_out: &TimedOut, what: &'static str) -> u64 {
        timed_out.get_or_create(&[("waited_for", what)]).get()
    }

    /// What is answered to a request, by somebody who has to wait for the only place.
    async fn answer(address: SocketAddr) -> String {
        answer_on(TcpStream::connect(address).await.unwrap()).await
    }

    async fn answer_on(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut said = String::new();
        tokio::time::timeout(LIMIT, stream.read_to_string(&mut said)).await.expect("a place").unwrap();
        said
    }

    #[tokio::test]
    async fn who_holds_a_place_and_says_nothing_loses_it() {
        let (listener, address) = one_place().await;
        let (timed_out, shutdown) = (listener.timed_out.clone(), Shutdown::new());
        let routes = Router::new().route("/", get(|| async { "well" }));
        let serving = tokio::spawn(listener.serve(routes, shutdown.clone()));
        let silent = TcpStream::connect(address).await.unwrap();
        assert!(answer(address).await.ends_with("well"));
        assert_eq!((count(&timed_out, "beginning"), count(&timed_out, "head")), (1, 0));
        drop(silent);

        // A byte now and then is not a request either, nor is nothing after one.
        for begun in ["POST / HTTP/1.1\r\nhost: x\r\nx-name: ", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let before = count(&timed_out, "head");
            let mut slow = TcpStream::connect(address).await.unwrap();
            slow.write_all(begun.as_bytes()).await.unwrap();
            let typing = tokio::spawn(async move {
                while begun.starts_with("POST") && slow.write_all(b"y").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await; // check: allow sleep, a client that types slowly
                }
                std::future::pending::<()>().await;
            });
            assert!(answer(address).await.ends_with("well"));
            assert_eq!(count(&timed_out, "head"), before + 1, "{begun}");
            typing.abort();
        }
        shutdown.trigger();
        tokio::time::timeout(LIMIT, serving).await.expect("it ends").unwrap();
    }

    /// A certificate of `tapio-audit` and its key, as the tests of the audit webhook use them.
    const CERTIFICATE: &str = include_str!("../../../tests/audit_tls/tls.crt");
    const KEY: &str = include_str!("../../../tests/audit_tls/tls.key");

    /// A connection whose handshake is over.
    async fn shaken(address: SocketAddr) -> client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await.unwrap();
        let connecting =
            TlsConnector::from(Arc::new(config)).connect("tapio-audit".try_into().unwrap(), stream);
        tokio::time::timeout(LIMIT, connecting).await.expect("a place").unwrap()
    }

    #[tokio::test]
    async fn who_holds_a_place_and_says_nothing_over_tls_loses_it() {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("tls.crt"), dir.path().join("tls.key"));
        std::fs::write(&certificate, CERTIFICATE).unwrap();
        std::fs::write(&key, KEY).unwrap();
        for (patience, waited_for) in [
            // A handshake may take its time on a slow machine, unless it is what is waited for.
            (Patience { beginning: LIMIT, head: Duration::from_secs(2) }, "head"),
            (Patience { beginning: Duration::from_secs(1), head: LIMIT }, "handshake"),
        ] {
            let tls = Tls::of(&certificate, &key).await.unwrap();
            let (listener, address) = one_place().await;
            let listener = Limited { patience, ..listener.with_tls(Some(tls)) };
            let (timed_out, shutdown) = (listener.timed_out.clone(), Shutdown::new());
            let routes = Router::new().route("/", get(|| async { "well" }));
            let serving = tokio::spawn(listener.serve(routes, shutdown.clone()));
            if waited_for == "head" {
                let silent = shaken(address).await;
                assert!(answer_on(shaken(address).await).await.ends_with("well"));
                drop(silent);
            } else {
                let mut silent = TcpStream::connect(address).await.unwrap();
                // The head of a first message of 512 bytes, and too little of it.
                silent.write_all(&[&[22, 3, 1, 2, 0][..], &[0; 32]].concat()).await.unwrap();
                let mut rest = Vec::new();
                let ended = silent.read_to_end(&mut rest);
                assert!(tokio::time::timeout(LIMIT, ended).await.is_ok(), "it holds its place");
            }
            let counts = ["beginning", "handshake", "head"].map(|what| (what, count(&timed_out, what)));
            assert_eq!(counts, counts.map(|(what, _)| (what, u64::from(what == waited_for))));
            shutdown.trigger();
            tokio::time::timeout(LIMIT, serving).await.expect("it ends").unwrap();
        }
    }

    #[tokio::test]
    async fn a_part_of_a_beginning_is_not_one() {
        let (mut listener, address) = one_place().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
        let mut connection = listener.accept().await;
        let mut bytes = Vec::new();
        let ended = tokio::time::timeout(LIMIT, connection.read_to_end(&mut bytes)).await.expect("an end");
        assert_eq!((ended.unwrap_err().kind(), bytes.len()), (io::ErrorKind::TimedOut, 16));
        // One that has begun may take its time.
        drop(connection);
        client.shutdown().await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut connection = listener.accept().await;
        let reading = connection.read_to_end(&mut bytes);
        assert!(tokio::time::timeout(Duration::from_millis(500), reading).await.is_err());
        assert_eq!(count(&listener.timed_out, "beginning"), 1);
    }
}
