//! The kernel's text files. A line that is not as expected is left out; nothing here fails.

/// One number, or `max` (and v1's page-aligned `i64::MAX`) for none.
pub fn limit(text: &str) -> Option<u64> {
    /// v1 says "unlimited" as the largest page-aligned `i64`; anything near it is no limit either.
    const UNLIMITED_FROM: u64 = 1 << 62;
    text.trim().parse().ok().filter(|n| *n < UNLIMITED_FROM)
}

/// One number.
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The number behind `key` in lines of `key value`.
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `some avg10=1.23 avg60=… avg300=… total=4567`: the average in percent and the total in microseconds.
pub fn pressure(text: &str) -> Option<(f64, u64)> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let field = |name: &str| some.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    Some((field("avg10")?.parse().ok()?, field("total")?.parse().ok()?))
}

/// Bytes read and written, over all devices of v2's `io.stat`: `8:0 rbytes=1 wbytes=2 …`.
pub fn io_v2(text: &str) -> (u64, u64) {
    let sum = |name: &str| {
        let of_line = |line: &str| -> Option<u64> {
            line.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        };
        text.lines().filter_map(of_line).sum()
    };
    (sum("rbytes"), sum("wbytes"))
}

/// Bytes read and written, over all devices of v1's `blkio.throttle.io_service_bytes`: `8:0 Read 1`.
pub fn io_v1(text: &str) -> (u64, u64) {
    let sum = |direction: &str| {
        let of_line = |line: &str| -> Option<u64> {
            let mut parts = line.split(' ');
            let (device, name, bytes) = (parts.next()?, parts.next()?, parts.next()?);
            (device.contains(':') && name == direction).then(|| bytes.parse().ok())?
        };
        text.lines().filter_map(of_line).sum()
    };
    (sum("Read"), sum("Write"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_numbers() {
        assert_eq!(limit("67108864\n"), Some(67_108_864));
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(number("12\n"), Some(12));
        assert_eq!(number(""), None);
    }

    #[test]
    fn keyed_lines_match_whole_words() {
        let stat = "cache 4096\ninactive_file 1\ntotal_inactive_file 8192\n";
        assert_eq!(keyed(stat, "inactive_file"), Some(1));
        assert_eq!(keyed(stat, "total_inactive_file"), Some(8192));
        assert_eq!(keyed(stat, "inactive"), None);
    }

    #[test]
    fn pressure_reads_the_line_of_some() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.10 total=5000000\n\
                    full avg10=1.00 avg60=0.00 avg300=0.00 total=77\n";
        assert_eq!(pressure(text), Some((12.34, 5_000_000)));
        assert_eq!(pressure(""), None);
    }

    #[test]
    fn io_is_summed_over_devices() {
        let v2 =
            "8:0 rbytes=100 wbytes=10 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=7 rios=1 wios=1\n";
        assert_eq!(io_v2(v2), (105, 17));
        let v1 = "8:0 Read 100\n8:0 Write 10\n8:0 Total 110\n8:16 Read 5\n8:16 Write 7\nTotal 122\n";
        assert_eq!(io_v1(v1), (105, 17));
    }
}
