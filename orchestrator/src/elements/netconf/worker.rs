//! One thread for one device: it alone talks to it, so a slow device blocks nobody else.
//!
//! ```text
//! Device (async, clones) --bounded queue--> thread --ssh2--> device
//!        <------- one answer a request ------
//! ```
//!
//! Locks and candidate edits belong to a session; a request therefore names the session it belongs to, and is refused
//! where that one is gone instead of being carried out on another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::NetconfError;
use super::session::Reply;
use super::transport::Link;
use crate::elements::NetconfConfig;

/// Most requests that wait for one device.
const QUEUE: usize = 256;

/// Pause after which the device is told that we are still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Names one session with the device, for the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag(u64);

enum Command {
    Open { answer: oneshot::Sender<Result<Tag, NetconfError>> },
    Call { tag: Tag, operation: String, answer: oneshot::Sender<Result<Reply, NetconfError>> },
    Close { tag: Tag },
}

/// A handle on the device's thread; the thread ends with the last clone.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    queue: SyncSender<Command>,
    connects: Arc<AtomicU64>,
}

impl Worker {
    /// Starts the thread; it connects when it is first asked to. `requires` is what the device must announce.
    pub(super) fn start(config: NetconfConfig, requires: Vec<String>) -> std::io::Result<Self> {
        let (queue, commands) = sync_channel(QUEUE);
        let connects = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&connects);
        std::thread::Builder::new()
            .name(format!("netconf-{}", config.name))
            .spawn(move || work(&config, &requires, &commands, &counted))?;
        Ok(Self { queue, connects })
    }

    /// How often it has connected.
    pub(super) fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// The session to use: the one there is, or a new one.
    pub(super) async fn open(&self) -> Result<Tag, NetconfError> {
        let (answer, answered) = oneshot::channel();
        self.put(Command::Open { answer })?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// One request on that session, and on no other.
    pub(super) async fn call(&self, tag: Tag, operation: String) -> Result<Reply, NetconfError> {
        let (answer, answered) = oneshot::channel();
        self.put(Command::Call { tag, operation, answer })?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Ends that session where it is still the one: the device lets go of its locks and forgets its edits.
    pub(super) fn close(&self, tag: Tag) {
        // A full queue means that the thread waits for the device; the session then ends by its time-out.
        let _ = self.queue.try_send(Command::Close { tag });
    }

    fn put(&self, command: Command) -> Result<(), NetconfError> {
        self.queue.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => NetconfError::Busy,
            TrySendError::Disconnected(_) => gone(),
        })
    }
}

fn gone() -> NetconfError {
    NetconfError::Lost("the device's thread has ended".to_owned())
}

fn work(config: &NetconfConfig, requires: &[String], commands: &Receiver<Command>, connects: &AtomicU64) {
    let mut link: Option<(Tag, Link)> = None;
    // While a device cannot be connected to, those who wait for it are told so at once instead of one after the other.
    let mut unreachable: Option<(Instant, NetconfError)> = None;
    loop {
        match commands.recv_timeout(KEEP_ALIVE) {
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                if let Some((_, alive)) = &mut link
                    && !(alive.is_alive() && alive.keep_alive())
                {
                    tracing::debug!(element = config.name, "netconf session ended while idle");
                    link = None;
                }
            }
            Ok(Command::Open { answer }) => {
                if let Some((_, held)) = &mut link
                    && !held.is_alive()
                {
                    link = None;
                }
                let opened = match (&link, &unreachable) {
                    (Some((tag, _)), _) => Ok(*tag),
                    (None, Some((since, error))) if since.elapsed() < config.connect => Err(error.clone()),
                    (None, _) => connect(config, requires).map(|new| {
                        let tag = Tag(connects.fetch_add(1, Ordering::Relaxed) + 1);
                        link = Some((tag, new));
                        tag
                    }),
                };
                unreachable = match &opened {
                    Ok(_) => None,
                    Err(error) => unreachable
                        .filter(|(since, _)| since.elapsed() < config.connect)
                        .or_else(|| Some((Instant::now(), error.clone()))),
                };
                let _ = answer.send(opened);
            }
            Ok(Command::Call { tag, operation, answer }) => {
                // Whoever asked may have stopped waiting while this was in the queue.
                if answer.is_closed() {
                    continue;
                }
                let result = match &mut link {
                    Some((held, open)) if *held == tag => open.call(&operation, config.rpc),
                    _ => Err(NetconfError::Lost("it was closed between two requests".to_owned())),
                };
                if result.is_err() && link.as_ref().is_some_and(|(held, _)| *held == tag) {
                    link = None;
                }
                let _ = answer.send(result);
            }
            Ok(Command::Close { tag }) => {
                if link.as_ref().is_some_and(|(held, _)| *held == tag) {
                    link = None;
                }
            }
        }
    }
}

fn connect(config: &NetconfConfig, requires: &[String]) -> Result<Link, NetconfError> {
    let link = Link::open(config)?;
    for needed in requires {
        let announced = link.session().has(needed) || module_announced(&link, needed);
        if !announced {
            return Err(NetconfError::Incapable(needed.clone()));
        }
    }
    tracing::info!(element = config.name, session = link.session().session_id(), "netconf session open");
    Ok(link)
}

/// Modules are announced as `NAMESPACE?module=NAME&revision=DATE` (RFC 6020 section 5.6.4), or only in the YANG library.
fn module_announced(link: &Link, namespace: &str) -> bool {
    let library = "urn:ietf:params:netconf:capability:yang-library:";
    let lists_modules =
        link.session().capabilities().iter().any(|capability| capability.contains("?module="));
    !namespace.starts_with("urn:ietf:params:netconf:capability:")
        && !lists_modules
        && link.session().capabilities().iter().any(|capability| capability.starts_with(library))
}
