//! Events of tests at which a shard panics. No event is known to do that by itself: who finds one mends it.

use std::cell::Cell;

use tapio_schemas::EventId;

/// While its batch is taken in.
pub const TAKEN: EventId = EventId(0xdead_0001);
/// While its batch is taken in, and while it is counted as given up.
pub const COUNTED: EventId = EventId(0xdead_0004);
/// While it is judged.
pub const JUDGED: EventId = EventId(0xdead_0002);
/// At the end of the step in which it was judged, when no event is at work.
pub const TOLD: EventId = EventId(0xdead_0003);

thread_local! {
    static SPRUNG: Cell<u32> = const { Cell::new(0) };
}

/// What the judged events left behind.
#[derive(Default)]
pub struct Trap(bool);

/// An event is taken in.
pub fn taken(id: EventId) {
    spring(id == TAKEN || id == COUNTED);
}

/// An event is counted as given up.
pub fn given_up(id: EventId) {
    spring(id == COUNTED);
}

/// Panics on this thread since this was asked last.
pub fn sprung() -> u32 {
    SPRUNG.take()
}

impl Trap {
    /// An event is judged.
    pub fn judged(&mut self, id: EventId) {
        spring(id == JUDGED);
        self.0 |= id == TOLD;
    }

    /// A step is told.
    pub fn told(&self) {
        spring(self.0);
    }
}

fn spring(is_trapped: bool) {
    SPRUNG.set(SPRUNG.get() + u32::from(is_trapped));
    assert!(!is_trapped, "a trap of a test");
}
