//! Makes connections over loopback, in a process of its own. Both ends are in one thread: the kernel completes the
//! handshake within `connect`, so nothing waits and no other thread is woken.

use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::time::{ClockId, clock_gettime};

/// Connections are made in bursts of this time: finer than any sleep of the kernel would be wasted on sleeping.
const BURST: Duration = Duration::from_millis(1);

/// Makes `rate` connections per second (0 = as many as it can) for that long and prints one line: port,
/// connections, nanoseconds it took, nanoseconds of CPU.
pub fn run(time: Duration, rate: u64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let began = Instant::now();
    let mut made = 0;
    while began.elapsed() < time {
        let due = (began.elapsed() + BURST).min(time).as_secs_f64() * rate as f64;
        // A generator that was kept from running does not make up for more than a tenth of a second at once.
        let until = if rate == 0 { made + 32 } else { (due as u64).min(made + rate / 10) };
        while made < until {
            one(&listener, address);
            made += 1;
        }
        if rate > 0 {
            let next = Duration::from_secs_f64(made as f64 / rate as f64);
            // check: allow sleep, this is the pace of the generator
            thread::sleep(next.saturating_sub(began.elapsed()));
        }
    }
    let (took, cpu) = (began.elapsed(), clock_gettime(ClockId::ProcessCPUTime));
    let cpu = cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64;
    println!("{} {made} {} {cpu}", address.port(), took.as_nanos());
}

fn one(listener: &TcpListener, address: std::net::SocketAddr) {
    let client = TcpStream::connect(address).expect("a connection");
    let (server, _) = listener.accept().expect("its other end");
    // Closed with a reset: no end stays in TIME_WAIT, and the kernel has more to tell.
    set_socket_linger(&client, Some(Duration::ZERO)).expect("a socket");
    drop(client);
    drop(server);
}
