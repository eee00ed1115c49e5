//! Arbitrary bytes are refused or read, never a panic: `cargo +nightly fuzz run decode_batch`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tapio_schemas::wire::{EventBatchView, SignalBatchView, Unpacker};

fuzz_target!(|bytes: &[u8]| {
    let mut unpacker = Unpacker::default();
    let Ok(bytes) = unpacker.unpack(bytes) else { return };
    if let Ok(view) = EventBatchView::check(bytes) {
        for event in view.to_events() {
            let _ = (event.key().shard(), format!("{event:?}").len());
        }
    }
    if let Ok(view) = SignalBatchView::check(bytes) {
        let _ = view.to_section();
    }
});
