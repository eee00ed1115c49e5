//! Reads the metrics of a service.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// A service that does not answer for so long is away.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name with its prefix and suffix: `tapio_correlator_events_total`.
    pub name: String,
    /// Labels as they stand between the braces.
    pub labels: String,
    /// Value.
    pub value: f64,
}

impl Sample {
    /// Value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.split(',').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name == key).then(|| value.trim_matches('"'))
        })
    }
}

/// Sum over all labels of a counter or gauge.
pub fn sum(samples: &[Sample], name: &str) -> u64 {
    samples.iter().filter(|s| s.name == name).map(|s| s.value as u64).sum()
}

/// Asks for `/metrics`. HTTP/1.0, so that the answer ends with the connection.
pub async fn read(address: SocketAddr) -> io::Result<Vec<Sample>> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: tapio\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_MAX, asked).await??;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
    if !head.contains(" 200 ") {
        return Err(io::Error::other(format!("answered `{}`", head.lines().next().unwrap_or_default())));
    }
    Ok(parse(body))
}

fn parse(body: &str) -> Vec<Sample> {
    let lines = body.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.trim_end_matches('}')),
                None => (series, ""),
            };
            Some(Sample { name: name.to_owned(), labels: labels.to_owned(), value: value.parse().ok()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_their_labels() {
        let text = "# HELP a b\na_total 3\nb_total{reason=\"too_old\",stage=\"x\"} 4\nb_total{reason=\"y\"} 5\n# EOF";
        let samples = parse(text);
        assert_eq!(sum(&samples, "a_total"), 3);
        assert_eq!(sum(&samples, "b_total"), 9);
        assert_eq!(samples[1].label("reason"), Some("too_old"));
        assert_eq!(samples[1].label("stage"), Some("x"));
        assert_eq!(samples[2].label("stage"), None);
    }
}
