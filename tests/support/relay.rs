//! A relay in the middle of a stretched line: each frame is handed on after a known time, and known segments are not.
//!
//! Does what netem does, for kernels without it, and keeps the books that netem does not: what of each subscriber's TCP came by, was sent
//! again, and was lost. Frames are handed on in their order. They take at least the time that is asked for; what this machine
//! adds to it is for whoever measures to find out.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use pcap::{Active, Capture, Direction};

use crate::netns::{Lab, Side};

/// How long a relay that is to stop may not notice.
const PATIENCE_MS: i32 = 20;

/// One way over a line.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// The loose end where frames come from.
    pub from: &'a str,
    /// The one where they are handed on.
    pub to: &'a str,
    /// How long that takes.
    pub delay: Duration,
}

/// What is lost on a way, of one subscriber: of the TCP segments with payload that come for the first time each so many-th.
#[derive(Debug, Clone, Copy)]
pub struct Loss {
    /// The subscriber, whichever end of the way is his.
    pub subscriber: Ipv4Addr,
    /// One in so many.
    pub one_in: u32,
}

/// TCP segments with payload of one subscriber on one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen {
    /// All that came.
    pub segments: u32,
    /// Those of them that had come before.
    pub again: u32,
    /// Those of them that were not handed on.
    pub lost: u32,
}

/// Frames pass as long as it is there.
#[derive(Debug)]
pub struct Relay {
    stop: Arc<AtomicBool>,
    books: Vec<Arc<Mutex<Vec<Book>>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Relay {
    /// Hands frames on over these ways, each with what is lost there.
    pub fn start(lab: &Lab, ways: &[(Way<'_>, Vec<Loss>)]) -> Result<Self> {
        let mut relay = Self { stop: Arc::default(), books: Vec::new(), threads: Vec::new() };
        for (way, losses) in ways {
            let [from, to] =
                lab.within(Side::Relay, || Ok([open(way.from)?, open(way.to)?])).context("open the lines")?;
            let books = losses.iter().map(|loss| Book { loss: *loss, next: None, seen: Seen::default() });
            let books = Arc::new(Mutex::new(books.collect::<Vec<_>>()));
            let (frames, due) = mpsc::channel();
            relay.books.push(Arc::clone(&books));
            let stop = Arc::clone(&relay.stop);
            relay.threads.push(thread::spawn(move || take(from, &stop, &books, &frames)));
            let delay = way.delay;
            relay.threads.push(thread::spawn(move || hand_on(to, delay, &due)));
        }
        Ok(relay)
    }

    /// What came of a subscriber on a way, by the number of each.
    pub fn seen(&self, way: usize, subscriber: usize) -> Result<Seen> {
        let books = self.books.get(way).context("no such way")?;
        let books = books.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(books.get(subscriber).context("nothing is lost of that subscriber")?.seen)
    }

    /// Ends it. Where frames were lost that nobody wanted lost, that is an error.
    pub fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a relay panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn open(interface: &str) -> Result<Capture<Active>> {
    let capture = Capture::from_device(interface)?;
    let capture = capture.promisc(true).immediate_mode(true).snaplen(65_535).buffer_size(4 << 20);
    let capture = capture.timeout(PATIENCE_MS).open().with_context(|| format!("open {interface}"))?;
    // Not what this relay itself sends there.
    capture.direction(Direction::In).with_context(|| format!("listen on {interface}"))?;
    Ok(capture)
}

/// Takes frames in, but for those that are to be lost.
fn take(
    mut from: Capture<Active>,
    stop: &AtomicBool,
    books: &Mutex<Vec<Book>>,
    frames: &mpsc::Sender<(Instant, Vec<u8>)>,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let frame = match from.next_packet() {
            Ok(packet) => packet.data,
            Err(pcap::Error::TimeoutExpired) => continue,
            Err(error) => return Err(error).context("read a frame"),
        };
        let came = Instant::now();
        let mut books = books.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = segment(frame).is_some_and(|segment| {
            books.iter_mut().find(|book| book.is_of(&segment)).is_some_and(|book| book.loses(&segment))
        });
        drop(books);
        if !lost && frames.send((came, frame.to_vec())).is_err() {
            break;
        }
    }
    let missed = from.stats().context("ask what was missed")?.dropped;
    ensure!(missed == 0, "the relay missed {missed} frames");
    Ok(())
}

/// Hands frames on when they are due.
fn hand_on(
    mut to: Capture<Active>,
    delay: Duration,
    frames: &mpsc::Receiver<(Instant, Vec<u8>)>,
) -> Result<()> {
    for (came, frame) in frames {
        thread::sleep((came + delay).saturating_duration_since(Instant::now()));
        to.sendpacket(frame).context("hand a frame on")?;
    }
    Ok(())
}

/// A TCP segment with payload.
struct Segment {
    ends: [Ipv4Addr; 2],
    sequence: u32,
    /// The sequence number after it.
    next: u32,
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
        return None;
    };
    let payload = u32::try_from(tcp.payload().len()).ok().filter(|payload| *payload > 0)?;
    let sequence = tcp.sequence_number();
    let ends = [ip.header().source_addr(), ip.header().destination_addr()];
    Some(Segment { ends, sequence, next: sequence.wrapping_add(payload) })
}

/// What is known of a subscriber's one connection on one way.
#[derive(Debug)]
struct Book {
    loss: Loss,
    /// The sequence number after the highest that came.
    next: Option<u32>,
    seen: Seen,
}

impl Book {
    fn is_of(&self, segment: &Segment) -> bool {
        segment.ends.contains(&self.loss.subscriber)
    }

    /// Enters a segment; whether it is to be lost.
    fn loses(&mut self, segment: &Segment) -> bool {
        self.seen.segments += 1;
        // Sequence numbers compare modulo 2^32 (RFC 9293, 3.4).
        let new = self.next.is_none_or(|next| segment.sequence.wrapping_sub(next).cast_signed() >= 0);
        if !new {
            self.seen.again += 1;
            return false;
        }
        self.next = Some(segment.next);
        let lost = (self.seen.segments - self.seen.again).is_multiple_of(self.loss.one_in);
        self.seen.lost += u32::from(lost);
        lost
    }
}
