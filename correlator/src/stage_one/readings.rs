//! How far a lane is with reading its shards, and which of them may follow the clock.

use std::time::Duration;

use tapio_schemas::UnixNanos;
use tapio_schemas::names::SHARD_COUNT;

/// A shard of which nothing has come for this long is caught up, when nothing is pending either.
pub const QUIET: Duration = Duration::from_millis(50);
/// After a lost connection the clock is not followed for this long: events from before may still come.
const RECONNECT_GRACE: Duration = Duration::from_secs(2);
/// Who neither read nor looked for so long was stopped, or had no processor: what came meanwhile is not read yet, however
/// quiet it was before. The same holds of a server that did not answer for so long.
const STALLED: Duration = Duration::from_millis(200);

/// A call that has not come back for so long may be lost with a connection: another one is made.
const CALL_LOST: Duration = Duration::from_secs(2);

/// All shards of a lane.
pub struct Readings {
    shards: Vec<Reading>,
    away_until: Duration,
    /// When something was last read, or looked for.
    turned: Duration,
    /// What was called last, until it comes back.
    call: Option<Call>,
    /// Calls so far.
    calls: u64,
    /// Wall time of the newest call that came back, until the clock is followed up to there.
    answered: Option<UnixNanos>,
}

/// A number that was called into the server.
#[derive(Clone, Copy)]
struct Call {
    number: u64,
    at: Duration,
    wall: UnixNanos,
    /// Nothing has come back since.
    since: Duration,
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
            call: None,
            calls: 0,
            answered: None,
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

    /// What there is of the shard is not known any more, until all that is there has come.
    pub fn behind(&mut self, shard: u16) {
        self.shards[usize::from(shard)].current = false;
    }

    /// To be asked every [`QUIET`], when nothing waits to be read: the number to be called into the server, if one is.
    pub fn look(&mut self, now: Duration, wall: UnixNanos, is_connected: bool) -> Option<u64> {
        if !is_connected {
            self.away_until = now + RECONNECT_GRACE;
        }
        let turned = std::mem::replace(&mut self.turned, now);
        self.stood_still(now.saturating_sub(turned), now);
        let since = self.call.map_or(now, |call| call.since);
        self.stood_still(now.saturating_sub(since), now);
        let is_awaited = self.call.is_some_and(|call| now.saturating_sub(call.at) < CALL_LOST);
        if is_awaited || !is_connected {
            return None;
        }
        self.calls += 1;
        self.call = Some(Call { number: self.calls, at: now, wall, since });
        Some(self.calls)
    }

    /// A number came back: what the server had sent before is here.
    pub fn came_back(&mut self, number: u64, now: Duration) {
        if let Some(call) = self.call.take_if(|call| call.number == number) {
            self.stood_still(now.saturating_sub(call.since), now);
            self.answered = Some(call.wall);
        }
    }

    /// Whether a call came back of which [`Self::caught_up`] does not know yet.
    pub fn is_answered(&self) -> bool {
        self.answered.is_some()
    }

    /// To be asked when a call came back and nothing waits to be read: the shards that have nothing left to read, a bit for
    /// each, and the wall time of the call. Of what was published after it, nothing is known.
    pub fn caught_up(&mut self, now: Duration) -> Option<(u64, UnixNanos)> {
        let wall = self.answered.take().filter(|_| now >= self.away_until)?;
        let quiet = |reading: &Reading| {
            reading.epoch > 0 && reading.current && now.saturating_sub(reading.read_at) >= QUIET
        };
        let shards: u64 =
            self.shards.iter().zip(0..).map(|(reading, shard)| u64::from(quiet(reading)) << shard).sum();
        (shards != 0).then_some((shards, wall))
    }

    /// What waits after a standstill gets as long again to come.
    fn stood_still(&mut self, so_long: Duration, now: Duration) {
        if so_long >= STALLED {
            self.away_until = self.away_until.max(now + so_long.min(RECONNECT_GRACE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Looks every 50 ms, and what it calls comes back at once; the moments at which shard 3 may follow the clock.
    fn looks(readings: &mut Readings, range: std::ops::Range<u64>) -> Vec<u64> {
        let follows = |at: &u64| {
            if let Some(number) = readings.look(ms(*at), UnixNanos(*at), true) {
                readings.came_back(number, ms(*at));
            }
            readings.caught_up(ms(*at)) == Some((1 << 3, UnixNanos(*at)))
        };
        range.step_by(50).filter(follows).collect()
    }

    fn current() -> Readings {
        let mut readings = Readings::new();
        readings.own(3, 1);
        readings.current(3);
        readings
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
        readings.behind(3);
        assert!(looks(&mut readings, 550..650).is_empty());
        readings.current(3);
        assert_eq!(looks(&mut readings, 650..700), [650]);
        readings.stop(3);
        assert!(looks(&mut readings, 700..800).is_empty());
    }

    #[test]
    fn who_stood_still_reads_before_it_follows_the_clock() {
        let mut readings = current();
        assert_eq!(looks(&mut readings, 0..150), [50, 100]);
        // Stopped for 900 ms. What came meanwhile gets as long to arrive.
        assert_eq!(looks(&mut readings, 1000..2000).first(), Some(&1900));
        assert_eq!(readings.look(ms(2000), UnixNanos(0), false), None);
        assert_eq!(looks(&mut readings, 2050..4200).first(), Some(&4000));
    }

    #[test]
    fn with_a_server_that_stands_still_the_clock_is_followed_to_the_last_call_that_came_back() {
        let mut readings = current();
        assert_eq!(looks(&mut readings, 0..100), [50]);
        let number = readings.look(ms(100), UnixNanos(100), true).expect("called");
        for at in (150..700).step_by(50) {
            assert_eq!(readings.look(ms(at), UnixNanos(at), true), None, "one at a time");
            assert!(!readings.is_answered() && readings.caught_up(ms(at)).is_none());
        }
        // It stood still for 600 ms: as long again.
        readings.came_back(number, ms(700));
        assert!(readings.is_answered() && readings.caught_up(ms(700)).is_none());
        assert_eq!(looks(&mut readings, 700..1500).first(), Some(&1300));
        // One that comes back soon is followed up to when it was called, and once.
        let number = readings.look(ms(1500), UnixNanos(1500), true).expect("called");
        readings.came_back(number, ms(1540));
        assert_eq!(readings.caught_up(ms(1545)), Some((1 << 3, UnixNanos(1500))));
        assert_eq!(readings.caught_up(ms(1546)), None);
    }

    #[test]
    fn a_call_that_was_lost_is_made_again_and_the_old_one_does_not_count() {
        let mut readings = current();
        let lost = readings.look(ms(50), UnixNanos(50), true).expect("called");
        let again = (100..4000).step_by(50).find_map(|at| readings.look(ms(at), UnixNanos(at), true));
        let again = again.expect("called again");
        readings.came_back(lost, ms(2060));
        assert!(!readings.is_answered());
        readings.came_back(again, ms(2070));
        assert!(readings.is_answered());
    }
}
