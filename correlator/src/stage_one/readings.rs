//! How far a lane is with reading its shards, and which of them may follow the clock.

use std::time::Duration;

use tapio_schemas::names::SHARD_COUNT;

/// A shard of which nothing has come for this long is caught up, when nothing is pending either.
pub const QUIET: Duration = Duration::from_millis(50);
/// After a lost connection the clock is not followed for this long: events from before may still come.
const RECONNECT_GRACE: Duration = Duration::from_secs(2);
/// Who neither read nor looked for so long was stopped, or had no processor: what came meanwhile is not read yet, however
/// quiet it was before.
const STALLED: Duration = Duration::from_millis(200);

/// All shards of a lane.
pub struct Readings {
    shards: Vec<Reading>,
    away_until: Duration,
    /// When something was last read, or looked for.
    turned: Duration,
}

/// How far reading one shard is.
#[derive(Clone, Copy, Default)]
struct Reading {
    /// Epoch of its lease; zero when it is not ours.
    epoch: u64,
    /// Everything that was there is read.
    current: bool,
    read_at: Duration,
}

impl Readings {
    /// No shards.
    pub fn new() -> Self {
        Self {
            shards: vec![Reading::default(); usize::from(SHARD_COUNT)],
            away_until: Duration::ZERO,
            turned: Duration::ZERO,
        }
    }

    /// The shard is ours from now on, and nothing of it is read.
    pub fn own(&mut self, shard: u16, epoch: u64) {
        self.shards[usize::from(shard)] = Reading { epoch, ..Reading::default() };
    }

    /// The shard is not read any more.
    pub fn stop(&mut self, shard: u16) {
        self.shards[usize::from(shard)] = Reading::default();
    }

    /// Whether the shard is ours, under this epoch.
    pub fn is_of(&self, shard: u16, epoch: u64) -> bool {
        self.shards[usize::from(shard)].epoch == epoch
    }

    /// A message came, and so many are there after it.
    pub fn read(&mut self, shard: u16, pending: u64, now: Duration) {
        let reading = &mut self.shards[usize::from(shard)];
        reading.current = pending == 0;
        reading.read_at = now;
        self.turned = now;
    }

    /// All that was there when reading began has come.
    pub fn current(&mut self, shard: u16) {
        self.shards[usize::from(shard)].current = true;
    }

    /// The shards that have nothing left to read: a bit for each. To be asked every [`QUIET`], when nothing
    /// waits to be read.
    pub fn caught_up(&mut self, now: Duration, is_connected: bool) -> u64 {
        if !is_connected {
            self.away_until = now + RECONNECT_GRACE;
        }
        let stalled = now.saturating_sub(std::mem::replace(&mut self.turned, now));
        if stalled >= STALLED {
            self.away_until = self.away_until.max(now + stalled.min(RECONNECT_GRACE));
        }
        if now < self.away_until {
            return 0;
        }
        let quiet = |reading: &Reading| {
            reading.epoch > 0 && reading.current && now.saturating_sub(reading.read_at) >= QUIET
        };
        self.shards.iter().zip(0..).map(|(reading, shard)| u64::from(quiet(reading)) << shard).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Looks every 50 ms; the moments at which shard 3 may follow the clock.
    fn looks(readings: &mut Readings, range: std::ops::Range<u64>) -> Vec<u64> {
        range.step_by(50).filter(|at| readings.caught_up(ms(*at), true) == 1 << 3).collect()
    }

    #[test]
    fn a_quiet_shard_follows_the_clock_and_one_with_more_to_read_does_not() {
        let mut readings = Readings::new();
        readings.own(3, 1);
        assert!(looks(&mut readings, 0..200).is_empty());
        readings.read(3, 2, ms(200));
        assert!(looks(&mut readings, 200..400).is_empty());
        readings.read(3, 0, ms(400));
        assert_eq!(looks(&mut readings, 400..550), [450, 500]);
        readings.stop(3);
        assert!(looks(&mut readings, 550..650).is_empty());
    }

    #[test]
    fn who_stood_still_reads_before_it_follows_the_clock() {
        let mut readings = Readings::new();
        readings.own(3, 1);
        readings.current(3);
        assert_eq!(looks(&mut readings, 0..150), [50, 100]);
        // Stopped for 900 ms. What came meanwhile gets as long to arrive.
        assert_eq!(looks(&mut readings, 1000..2000).first(), Some(&1900));
        assert_eq!(readings.caught_up(ms(2000), false), 0);
        assert_eq!(looks(&mut readings, 2050..4200).first(), Some(&4000));
    }
}
