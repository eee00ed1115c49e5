//! The kernel's text files of one network namespace. What is not as expected is left out; nothing here fails.

use std::collections::HashMap;

/// Counters of `snmp` and `netstat`, which come in pairs of lines: names, then values.
#[derive(Debug, Default)]
pub struct Table<'a>(HashMap<(&'a str, &'a str), u64>);

impl<'a> Table<'a> {
    /// Reads all pairs of lines.
    pub fn read(text: &'a str) -> Self {
        let mut table = HashMap::new();
        let mut lines = text.lines();
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            let (Some((protocol, names)), Some((same, values))) =
                (names.split_once(": "), values.split_once(": "))
            else {
                continue;
            };
            if protocol != same {
                continue;
            }
            // Gauges that may be negative (`MaxConn -1`) are none of ours.
            let numbers = values.split_whitespace().map(|value| value.parse().ok());
            for (name, value) in names.split_whitespace().zip(numbers) {
                if let Some(value) = value {
                    table.insert((protocol, name), value);
                }
            }
        }
        Self(table)
    }

    /// A counter; `None` where this kernel has none of that name.
    pub fn get(&self, protocol: &str, name: &str) -> Option<u64> {
        self.0.get(&(protocol, name)).copied()
    }
}

/// Packets of the second column of `softnet_stat`, over all processors: the queue between driver and stack was full.
pub fn softnet_dropped(text: &str) -> Option<u64> {
    let of_line = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    if text.is_empty() { None } else { text.lines().map(of_line).sum() }
}

/// A column of a table of `stat/`, over all processors: a line of names, then a line of hexadecimal numbers for each one.
pub fn per_processor(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines();
    let at = lines.next()?.split_whitespace().position(|column| column == name)?;
    let of_line = |line: &str| u64::from_str_radix(line.split_whitespace().nth(at)?, 16).ok();
    lines.map(of_line).sum()
}

/// The same of the first processor alone: of a column that says the same in each line.
pub fn first_processor(text: &str, name: &str) -> Option<u64> {
    let two: Vec<&str> = text.lines().take(2).collect();
    per_processor(&two.join("\n"), name).filter(|_| two.len() == 2)
}

/// One interface of `dev`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What came in.
    pub receive: Direction,
    /// What went out.
    pub transmit: Direction,
}

/// Counters of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Direction {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets that were broken, or could not be sent.
    pub errors: u64,
    /// Packets for which there was no room, those that the device missed included.
    pub dropped: u64,
}

/// The interfaces of `dev`: two lines of titles, then `name: 8 columns received 8 columns sent`.
pub fn interfaces(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, counters) = line.rsplit_once(": ").or_else(|| line.rsplit_once(':'))?;
        let counters: Vec<u64> =
            counters.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let direction = |from: usize| {
            Some(Direction {
                bytes: *counters.get(from)?,
                packets: *counters.get(from + 1)?,
                errors: *counters.get(from + 2)?,
                dropped: *counters.get(from + 3)?,
            })
        };
        Some(Interface { name: name.trim().to_owned(), receive: direction(0)?, transmit: direction(8)? })
    };
    text.lines().skip(2).filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read_by_name() {
        let text = "Tcp: RtoAlgorithm MaxConn RetransSegs\nTcp: 1 -1 1438\nUdp: RcvbufErrors\nUdp: 7\n";
        let table = Table::read(text);
        assert_eq!(table.get("Tcp", "RetransSegs"), Some(1438));
        assert_eq!(table.get("Udp", "RcvbufErrors"), Some(7));
        assert_eq!(table.get("Tcp", "MaxConn"), None);
        assert_eq!(table.get("Tcp", "NoSuchCounter"), None);
        assert!(Table::read("Tcp: a b\nUdp: 1 2\nTcp:\n").0.is_empty());
    }

    #[test]
    fn softnet_is_hexadecimal_and_summed() {
        assert_eq!(softnet_dropped("001bc708 00000010 00000001\n001736bd 00000001 00000001\n"), Some(17));
        assert_eq!(softnet_dropped("garbage\n"), None);
        assert_eq!(softnet_dropped(""), None, "absent, not zero");
    }

    #[test]
    fn interfaces_have_two_directions() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|…\n\
                    \x20   lo:     100  2 0 0 0 0 0 0  100 2 0 0 0 0 0 0\n\
                    \x20 eth0.7:5 6 1 2 0 0 0 0 7 8 3 4 0 0 0 0\n short: 1 2 3\n";
        let all = interfaces(text);
        assert_eq!(all.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["lo", "eth0.7"]);
        assert_eq!(all[1].receive, Direction { bytes: 5, packets: 6, errors: 1, dropped: 2 });
        assert_eq!(all[1].transmit, Direction { bytes: 7, packets: 8, errors: 3, dropped: 4 });
    }
}
