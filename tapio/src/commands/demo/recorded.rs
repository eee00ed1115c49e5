//! The recording of a real run, for machines where it cannot be done live.

use crate::recording::{Replay, ReplaySettings};
use crate::render;

/// A recording made with `tapio record` while `tapio demo memory-leak` ran.
const MEMORY_LEAK: &[u8] = include_bytes!("../../../recordings/memory-leak.jsonl.zst");

/// Replays the recording through the very pipeline and prints what was told then.
pub fn memory_leak() -> anyhow::Result<i32> {
    let mut replay =
        Replay::new(&ReplaySettings { cluster: "demo".to_owned(), ..ReplaySettings::default() })?;
    let mut last = None;
    let reader = zstd::stream::read::Decoder::new(MEMORY_LEAK)?;
    replay.run(vec![Box::new(std::io::BufReader::new(reader))], |finding| {
        println!("{}", render::line(&finding));
        last = Some(finding);
        Ok(())
    })?;
    if let Some(finding) = last {
        println!("\n{}", render::story(&finding));
    }
    Ok(0)
}
