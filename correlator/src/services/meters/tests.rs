use super::*;

fn told(shares: &[f64]) -> f64 {
    let (mut meters, service) = (Meters::default(), Entity::new("Service", "", "web", ""));
    let key = (SmolStr::new("p"), Measure::CpuShare, SmolStr::default());
    let mut now = UnixNanos(27_000_000 * 60 * SECOND_NS);
    for share in shares {
        now = now.plus(60 * SECOND_NS);
        meters.observe(&service, &key, (now, *share, EventId::default()));
    }
    meters.fade(now);
    let all = meters.deviations(now, 0.0);
    all.iter().find(|((_, sign, ..), _)| *sign == Sign::CpuSaturated).map_or(0.0, |(_, d)| d.evidence)
}

#[test]
fn memory_that_leaps_is_told_and_usual_after_a_while() {
    let (mut meters, service) = (Meters::default(), Entity::new("Service", "", "web", ""));
    let key = (SmolStr::new("p"), Measure::MemoryBytes, SmolStr::default());
    let mut now = UnixNanos(27_000_000 * 60 * SECOND_NS);
    let mut told = Vec::new();
    for megabytes in [100.0, 103.0, 101.0, 110.0, 104.0].into_iter().chain([260.0; 40]) {
        now = now.plus(30 * SECOND_NS);
        meters.observe(&service, &key, (now, megabytes * 1e6, EventId::default()));
        told.push(meters.deviations(now, 4.0).len());
    }
    assert_eq!(told[..6].iter().sum::<usize>(), 0, "one sample is not enough: {told:?}");
    assert_eq!(told[6..20].iter().sum::<usize>(), 14, "{told:?}");
    assert_eq!(told.last(), Some(&0), "{told:?}");
}

/// Deviations of a fifth day of one-minute samples whose last hour is as `last` says, after four with a job from three to
/// ten past three; the day's number of whole days before it are learnt.
fn at_night(days: u64, last: impl Fn(u64) -> f64) -> Vec<(Sign, f64)> {
    let (mut meters, service) = (Meters::default(), Entity::new("Service", "", "web", ""));
    let key = (SmolStr::new("p"), Measure::CpuCores, SmolStr::default());
    let minute = 60 * SECOND_NS;
    let at = |number: u64| UnixNanos((20_000 * 1440 + number) * minute);
    let job = |number: u64| if (180..190).contains(&(number % 1440)) { 2.0 } else { 0.2 };
    let mut told = Vec::new();
    for number in 0..days * 1440 + 400 {
        let is_last = number >= days * 1440 + 170;
        // A sample is missing now and then.
        if number % 37 == 0 {
            continue;
        }
        let value = if is_last { last(number % 1440) } else { job(number) };
        meters.observe(&service, &key, (at(number), value, EventId::default()));
        meters.fade(at(number));
        if is_last {
            let all = meters.deviations(at(number), 4.0);
            told.extend(all.into_iter().map(|((_, sign, ..), deviation)| (sign, deviation.now)));
        }
    }
    told
}

#[test]
fn a_job_of_every_night_is_news_until_two_days_were_seen() {
    let job = |minute: u64| if (180..190).contains(&minute) { 2.0 } else { 0.2 };
    assert!(!at_night(1, job).is_empty(), "once is not every night");
    assert!(at_night(2, job).is_empty(), "{:?}", at_night(2, job));
}

#[test]
fn a_shift_on_top_of_the_season_or_beside_it_is_news() {
    let on_top = at_night(4, |minute| if (180..190).contains(&minute) { 5.0 } else { 0.2 });
    assert!(on_top.iter().all(|(sign, now)| (*sign, *now) == (Sign::CpuRaised, 5.0)), "{on_top:?}");
    assert!(!on_top.is_empty());
    let beside = at_night(4, |minute| if (300..310).contains(&minute) { 2.0 } else { 0.2 });
    assert!(!beside.is_empty(), "at this time it never was so");
}

#[test]
fn seasons_are_bounded_and_those_without_are_counted() {
    let mut meters = Meters::default();
    let at = UnixNanos(27_000_000 * 60 * SECOND_NS);
    for number in 0..SEASONS_MAX + 5 {
        let service = Entity::new("Service", "", &number.to_string(), "");
        let key = (SmolStr::new("p"), Measure::CpuCores, SmolStr::default());
        meters.observe(&service, &key, (at, 0.1, EventId::default()));
    }
    assert_eq!((meters.seasons, meters.unseasoned), (SEASONS_MAX, 5));
}

#[test]
fn samples_of_one_moment_are_one() {
    let (mut meters, service) = (Meters::default(), Entity::new("Service", "", "web", ""));
    let key = (SmolStr::new("p"), Measure::CpuCores, SmolStr::default());
    let at = |s: u64| UnixNanos((27_000_000 * 60 + s) * SECOND_NS);
    for second in 0..120 {
        meters.observe(&service, &key, (at(second), 0.1, EventId::default()));
    }
    for second in 120..128 {
        meters.observe(&service, &key, (at(second), 3.0, EventId::default()));
    }
    assert!(meters.deviations(at(128), 4.0).is_empty());
    for second in 128..150 {
        meters.observe(&service, &key, (at(second), 3.0, EventId::default()));
    }
    let all = meters.deviations(at(150), 4.0);
    assert_eq!(all.keys().map(|(_, sign, ..)| *sign).collect::<Vec<_>>(), [Sign::CpuRaised]);
}

#[test]
fn a_busy_processor_is_saturated_only_when_it_is_known_to_be_idle_otherwise() {
    assert_eq!(told(&[0.9, 0.9, 0.9, 0.9]), 0.0, "it is always so");
    assert_eq!(told(&[0.9]), 0.0, "nothing else is known");
    assert!(told(&[0.1, 0.2, 0.1, 0.9]) >= CPU_FULL.1);
    assert!(told(&[0.1, 0.2, 0.1, 0.9, 0.1]) < CPU_FULL.1, "one normal sample ends it");
}
