//! A real client that fetches segments one after another over one connection, as a player does.

use std::io::{BufRead as _, BufReader};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::netns::{INTERNET, INTERNET6, Lab, Side};
use crate::wait::{self, Seen};

/// A segment that arrived.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// When its last byte did.
    pub arrived: Instant,
    /// From asking to the last byte.
    pub took: Duration,
    /// Of content.
    pub bytes: u64,
}

/// What a player asks for.
#[derive(Debug, Clone, Copy)]
pub struct Stream<'a> {
    /// The device's address; decides over which version of IP it plays.
    pub from: &'a str,
    /// The service's name.
    pub name: &'a str,
    /// `large` (250 kB) or `small` (32 kB).
    pub segments: &'a str,
}

/// curl, fetching until stopped.
#[derive(Debug)]
pub struct Player {
    child: Child,
    arrived: Arc<Mutex<Vec<Segment>>>,
    complaints: Arc<Mutex<String>>,
}

impl Player {
    /// Starts fetching.
    pub fn start(lab: &Lab, authority: &Path, stream: Stream<'_>) -> Result<Self> {
        let server = if stream.from.contains(':') { format!("[{INTERNET6}]") } else { INTERNET.to_owned() };
        let resolve = format!("{}:443:{server}", stream.name);
        let url = format!("https://{}/{}/[1-1000000]", stream.name, stream.segments);
        let mut child = lab
            .inside(
                Side::Subscribers,
                "curl",
                [
                    "--silent",
                    "--show-error",
                    "--http1.1",
                    "--interface",
                    stream.from,
                    "--resolve",
                    &resolve,
                    "--cacert",
                    &authority.to_string_lossy(),
                    "--output",
                    "/dev/null",
                    "--write-out",
                    // To stderr, for it is not buffered there: each line comes when its segment does.
                    "%{stderr}segment %{http_code} %{size_download} %{time_total}\n",
                    &url,
                ],
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start curl")?;
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let complaints = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().context("curl's output")?).lines();
        let (into, complain) = (Arc::clone(&arrived), Arc::clone(&complaints));
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                match parse(&line) {
                    Some(segment) => into.lock().unwrap_or_else(PoisonError::into_inner).push(segment),
                    None => complain.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line),
                }
            }
        });
        Ok(Self { child, arrived, complaints })
    }

    /// The segments that arrived after `since`.
    pub fn segments(&self, since: Instant) -> Vec<Segment> {
        let all = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|segment| segment.arrived > since).copied().collect()
    }

    /// The rate of content over the last `count` segments asked for after `since`, in bits per second, once it is as
    /// `expected`: after a change, TCP takes a while to find the new rate.
    pub fn rate(
        &mut self,
        (since, count): (Instant, usize),
        expected: &RangeInclusive<u64>,
        within: Duration,
    ) -> Result<u64> {
        wait::until(&format!("{count} segments at the expected rate"), within, || {
            self.expect_playing()?;
            let whole: Vec<_> = self
                .segments(since)
                .into_iter()
                .filter(|segment| {
                    segment.arrived.checked_sub(segment.took).is_some_and(|asked| asked >= since)
                })
                .collect();
            let Some(last) = whole.len().checked_sub(count).map(|first| &whole[first..]) else {
                return Ok(Seen::NotYet(format!("{} segments", whole.len())));
            };
            let rate = rate(last);
            Ok(Seen::when(expected.contains(&rate), rate, format!("{rate} bit/s")))
        })
    }

    /// Fails where curl has given up.
    pub fn expect_playing(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("look after curl")? {
            bail!(
                "curl ended ({status}): {}",
                self.complaints.lock().unwrap_or_else(PoisonError::into_inner)
            );
        }
        Ok(())
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Content over time, in bits per second.
fn rate(segments: &[Segment]) -> u64 {
    let bits: u64 = segments.iter().map(|segment| segment.bytes * 8).sum();
    let took: Duration = segments.iter().map(|segment| segment.took).sum();
    u64::try_from(u128::from(bits) * 1_000_000 / took.as_micros().max(1)).unwrap_or(u64::MAX)
}

/// A line curl writes for a whole segment; anything else is a complaint.
fn parse(line: &str) -> Option<Segment> {
    let mut words = line.strip_prefix("segment 200 ")?.split(' ');
    let (bytes, seconds) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Segment { arrived: Instant::now(), took: Duration::try_from_secs_f64(seconds).ok()?, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_segment_is_read_and_anything_else_is_a_complaint() {
        let segment = parse("segment 200 250000 1.333333").expect("a segment");
        assert_eq!((segment.bytes, segment.took), (250_000, Duration::from_micros(1_333_333)));
        assert!(parse("segment 404 150 0.1").is_none());
        assert!(parse("curl: (7) Failed to connect").is_none());
    }

    #[test]
    fn a_rate_is_content_over_the_time_it_took() {
        let segment = Segment { arrived: Instant::now(), took: Duration::from_secs(1), bytes: 125_000 };
        assert_eq!(rate(&[segment, segment]), 1_000_000);
    }
}
