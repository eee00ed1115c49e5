//! What commands print. Whoever reads it may be gone before the end, as with `tapio watch | head`.
//!
//! The system ends a program that writes to a broken pipe, by SIGPIPE, and that is what such commands want. But a broken
//! connection is the same to it, unless each write says otherwise: those of the standard library do, one by one, and not the
//! vectored ones (`writev`), by which the clients of NATS and gRPC write. So who holds connections ignores the signal, or it would
//! end without a word with a server that goes away; and what it prints goes through here.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit;

static LIVES_ON: AtomicBool = AtomicBool::new(false);
static IS_CUT: AtomicBool = AtomicBool::new(false);

/// As that of the standard library, by [`out`].
macro_rules! print {
    ($($text:tt)*) => { $crate::print::out(format_args!($($text)*)) };
}

/// As that of the standard library, by [`out`].
macro_rules! println {
    () => { $crate::print::out(format_args!("\n")) };
    ($($text:tt)*) => { $crate::print::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// As that of the standard library, which panics when nobody reads it.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::print::error(format_args!("{}\n", format_args!($($text)*))) };
}

/// From now on the program lives on when what it prints cannot be written.
pub fn live_on() {
    LIVES_ON.store(true, Ordering::Relaxed);
}

/// Prints. When that fails, a program that does not live on ends: without a word when nobody reads it any more.
pub fn out(text: Arguments<'_>) {
    let Err(error) = std::io::stdout().lock().write_fmt(text) else { return };
    let is_unread = error.kind() == ErrorKind::BrokenPipe;
    if !is_unread && !IS_CUT.swap(true, Ordering::Relaxed) {
        eprintln!("tapio: cannot print: {error}");
    }
    if !LIVES_ON.load(Ordering::Relaxed) {
        std::process::exit(if is_unread { exit::UNREAD } else { exit::FAILED });
    }
}

/// Prints to standard error, as long as somebody reads it.
pub fn error(text: Arguments<'_>) {
    let _unread = std::io::stderr().lock().write_fmt(text);
}

/// True when somebody who reads it got less than all: a full disk, for example.
pub fn is_cut() -> bool {
    IS_CUT.load(Ordering::Relaxed)
}
