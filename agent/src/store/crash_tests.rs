//! No byte lost, none told twice, wherever the agent is killed.
//!
//! A short history (traffic, drains, sessions that open, move and close, batches sent and acknowledged) is played once
//! for every step of it, with the agent killed at that step: at any write of its file, half of that write done, or
//! between any two things it does. The counters and the orchestrator live on; the next agent finds the file as it is.
//! At the end, what the orchestrator has applied must be what was counted, session by session.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use prost::Message as _;
use usher_models::telemetry;
use usher_models::wire::{ANONYMOUS, Enforcement, SlotUsage};

use super::*;
use crate::books::{Books, BooksError, Changed};
use crate::capture::BindingsFull;
use crate::dataplane::{DataPlaneError, Measured, Slots};
use crate::usage::SessionFacts;

/// Counts steps, down to the one at which the agent is killed. The file and everything else it touches share it.
#[derive(Debug, Clone, Default)]
struct Fuse(Arc<Mutex<Steps>>);

#[derive(Debug, Default)]
struct Steps {
    taken: u64,
    kill_at: Option<u64>,
    /// Whether the steps after that one go on as if nothing had been.
    once: bool,
}

#[derive(Debug, PartialEq, thiserror::Error)]
enum Killed {
    #[error("killed in this step")]
    Now,
    #[error("killed before")]
    Before,
}

impl Fuse {
    fn killing_at(step: Option<u64>) -> Self {
        Self(Arc::new(Mutex::new(Steps { taken: 0, kill_at: step, once: false })))
    }

    fn failing_once_at(step: u64) -> Self {
        Self(Arc::new(Mutex::new(Steps { taken: 0, kill_at: Some(step), once: true })))
    }

    fn taken(&self) -> u64 {
        self.0.lock().unwrap().taken
    }

    fn step(&self) -> Result<(), Killed> {
        let mut steps = self.0.lock().unwrap();
        steps.taken += 1;
        match steps.kill_at {
            Some(kill_at) if steps.taken - 1 == kill_at => Err(Killed::Now),
            Some(kill_at) if steps.taken - 1 > kill_at && !steps.once => Err(Killed::Before),
            _ => Ok(()),
        }
    }
}

impl From<Killed> for DataPlaneError {
    fn from(_: Killed) -> Self {
        Self::Killed
    }
}

/// The file's content, which outlives the agent, as one agent has it open.
#[derive(Debug)]
struct OpenFile {
    content: Arc<Mutex<Vec<u8>>>,
    fuse: Fuse,
}

impl OpenFile {
    fn step(&self) -> std::io::Result<()> {
        self.fuse.step().map_err(std::io::Error::other)
    }
}

impl redb::StorageBackend for OpenFile {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.content.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.content.lock().unwrap()[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.step()?;
        self.content.lock().unwrap().resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.step()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let step = self.fuse.step();
        // The write the agent dies in is torn; those after it, of destructors that a killed process never runs, are none.
        let done = match &step {
            Ok(()) => data,
            Err(Killed::Now) => &data[..data.len() / 2],
            Err(Killed::Before) => &[],
        };
        let start = usize::try_from(offset).unwrap();
        self.content.lock().unwrap()[start..start + done.len()].copy_from_slice(done);
        step.map_err(std::io::Error::other)
    }
}

/// Counters and bindings, as they live on in the kernel.
#[derive(Debug, Default)]
struct Kernel {
    fuse: Fuse,
    counters: HashMap<u32, SlotUsage>,
    /// Of one app, by lane, which here is the slot.
    apps: BTreeMap<u32, [u64; 2]>,
    bound: HashMap<IpNet, u32>,
    /// Places for prefixes; `None`: as many as are asked for.
    places: Option<usize>,
}

impl Slots for Kernel {
    fn usage(&mut self, slot: u32) -> Result<SlotUsage, DataPlaneError> {
        self.fuse.step()?;
        Ok(self.counters.get(&slot).copied().unwrap_or_default())
    }

    fn moved(&mut self, baseline: &Baseline, slots: Range<u32>) -> Result<Vec<Moved>, DataPlaneError> {
        let mut moved = Vec::new();
        for slot in slots {
            moved.extend(baseline.moved(slot, &self.usage(slot)?));
        }
        Ok(moved)
    }

    fn moved_apps(&mut self, baseline: &Baseline) -> Result<Vec<AppMoved>, DataPlaneError> {
        self.fuse.step()?;
        let moved = self.apps.iter().filter(|(lane, now)| **now != baseline.app(**lane));
        let moved =
            moved.map(|(lane, now)| AppMoved { lane: *lane, slot: *lane, app: "streams".into(), now: *now });
        Ok(moved.collect())
    }

    fn bind(&mut self, prefix: IpNet, slot: u32) -> Result<(), DataPlaneError> {
        self.fuse.step()?;
        match self.places {
            Some(limit) if self.bound.len() >= limit && !self.bound.contains_key(&prefix) => {
                Err(BindingsFull { prefix, limit }.into())
            }
            _ => {
                self.bound.insert(prefix, slot);
                Ok(())
            }
        }
    }

    fn bindings(&mut self) -> Result<Vec<IpNet>, DataPlaneError> {
        Ok(self.bound.keys().copied().collect())
    }

    fn unbind(&mut self, prefix: IpNet) -> Result<(), DataPlaneError> {
        self.fuse.step()?;
        self.bound.remove(&prefix);
        Ok(())
    }

    fn enforce(&mut self, _: u32, _: &Enforcement) -> Result<(), DataPlaneError> {
        Ok(self.fuse.step()?)
    }

    fn enforcement(&mut self, _: u32) -> Result<Enforcement, DataPlaneError> {
        Ok(Enforcement::default())
    }

    fn measured(&mut self, _: Micros) -> Vec<Measured> {
        Vec::new()
    }
}

/// Applies each batch once, in order; a gap would be a lost batch.
#[derive(Debug, Default)]
struct Orchestrator {
    last: HashMap<Vec<u8>, u64>,
    latest: Option<Vec<u8>>,
    sums: BTreeMap<String, u64>,
    apps: BTreeMap<String, u64>,
    repeats: u64,
}

impl Orchestrator {
    fn apply(&mut self, batch: &telemetry::Batch) {
        let last = self.last.entry(batch.boot.clone()).or_default();
        assert!(batch.sequence <= *last + 1, "batch {} after {last}: one is lost", batch.sequence);
        self.latest = Some(batch.boot.clone());
        if batch.sequence <= *last {
            self.repeats += 1;
            return;
        }
        *last = batch.sequence;
        for usage in &batch.usage {
            *self.sums.entry(usage.session.clone()).or_default() += usage.bytes;
        }
        for usage in &batch.apps {
            assert_eq!(usage.app, "streams");
            *self.apps.entry(usage.session.clone()).or_default() += usage.bytes_up + usage.bytes_down;
        }
    }
}

#[derive(Debug)]
struct Agent {
    store: Arc<Store>,
    books: Books,
}

#[derive(Debug, Default)]
struct World {
    content: Arc<Mutex<Vec<u8>>>,
    kernel: Kernel,
    orchestrator: Orchestrator,
    /// Who each slot belongs to, as the books have it.
    owners: HashMap<u32, String>,
    counted: BTreeMap<String, u64>,
    counted_apps: BTreeMap<String, u64>,
    starts: u64,
}

const PREFIXES: [&str; 3] = ["10.0.0.1/32", "10.0.0.2/32", "2001:db8::/64"];
const SECONDS: i64 = 12;

/// The operator's sessions file at each second: sessions open, move addresses among them, change keys, close, come back.
fn sessions_at(second: i64) -> Vec<SessionFacts> {
    let session = |id: &str, key: &str, prefix: usize| SessionFacts {
        id: id.to_owned(),
        keys: vec![format!("imsi:{key}")],
        prefixes: vec![PREFIXES[prefix].parse().unwrap()],
        ..SessionFacts::default()
    };
    match second {
        0 => vec![],
        1..3 => vec![session("a", "1", 0)],
        3..5 => vec![session("a", "1", 0), session("b", "2", 1)],
        5..7 => vec![session("b", "2", 0), session("c", "3", 1)],
        7..9 => vec![session("b", "2", 0), session("d", "4", 1), session("c", "5", 2)],
        9..11 => vec![session("a", "1", 1), session("b", "2", 2)],
        _ => vec![session("e", "6", 0), session("a", "1", 1)],
    }
}

impl World {
    fn traffic(&mut self, second: i64) {
        for (index, prefix) in PREFIXES.iter().enumerate() {
            let slot = self.kernel.bound.get(&prefix.parse().unwrap()).copied().unwrap_or(ANONYMOUS);
            let bytes = 1_000 * u64::try_from(second).unwrap() + 10_u64.pow(u32::try_from(index).unwrap());
            let cell = &mut self.kernel.counters.entry(slot).or_default().cells[index][index % 2];
            cell.bytes += bytes;
            cell.packets += 1;
            let owner = if slot == ANONYMOUS { String::new() } else { self.owners[&slot].clone() };
            if slot != ANONYMOUS {
                self.kernel.apps.entry(slot).or_default()[index % 2] += bytes / 2;
                *self.counted_apps.entry(owner.clone()).or_default() += bytes / 2;
            }
            *self.counted.entry(owner).or_default() += bytes;
        }
    }

    fn start(&mut self, second: i64, fuse: &Fuse) -> Result<Agent, BooksError> {
        self.starts += 1;
        self.kernel.fuse = fuse.clone();
        let open = |content: &Arc<Mutex<Vec<u8>>>, fresh: bool| {
            let file = OpenFile { content: content.clone(), fuse: fuse.clone() };
            let db = Database::builder().create_with_backend(file).map_err(redb::Error::from);
            Store::with(db.map_err(|error| StoreError::Database(Box::new(error)))?, Size(1 << 20), fresh)
        };
        let fresh = self.content.lock().unwrap().is_empty();
        if fresh {
            let new = Arc::default();
            drop(open(&new, fresh)?);
            fuse.step().map_err(DataPlaneError::from)?;
            self.content = new;
        }
        let store = Arc::new(open(&self.content, fresh)?);
        let now = Micros::new(second * 1_000_000);
        let books = Books::open(store.clone(), &mut self.kernel, Boot([5; 16]), 5, now)?;
        let mut agent = Agent { store, books };
        self.note_owners(&agent);
        // What passed while no agent ran.
        self.traffic(second);
        self.sessions(&mut agent, second)?;
        Ok(agent)
    }

    fn note_owners(&mut self, agent: &Agent) {
        let open = agent.books.accounts().all_open();
        self.owners.extend(open.map(|account| (account.slot, account.facts.id.clone())));
    }

    fn sessions(&mut self, agent: &mut Agent, second: i64) -> Result<Changed, BooksError> {
        let now = Micros::new(second * 1_000_000 + 1);
        let sessions = sessions_at(second);
        let changed = agent
            .books
            .set_sessions(now, &mut self.kernel, sessions, |_| Enforcement::default())?
            .expect("the spool has room");
        assert!(changed.without_slot.is_empty());
        self.note_owners(agent);
        Ok(changed)
    }

    /// One connection: the orchestrator says where it is (or was, where its last word is late), batches go up, some are
    /// acknowledged.
    fn connection(&mut self, agent: &Agent, fuse: &Fuse, acknowledge: bool) -> Result<(), BooksError> {
        let welcome =
            self.orchestrator.latest.as_ref().map(|boot| (boot.clone(), self.orchestrator.last[boot]));
        let (boot, sequence) = welcome.unwrap_or_default();
        let sequence = if acknowledge { sequence } else { sequence.saturating_sub(2) };
        let from = agent.store.position(&boot, sequence)?.unwrap_or_default();
        for (position, batch) in agent.store.batches_after(from, 100)? {
            fuse.step().map_err(DataPlaneError::from)?;
            self.orchestrator.apply(&telemetry::Batch::decode(batch.as_slice()).unwrap());
            fuse.step().map_err(DataPlaneError::from)?;
            if acknowledge && position.sequence % 2 == 0 {
                agent.store.acknowledged(position)?;
            }
        }
        Ok(())
    }

    fn second(&mut self, agent: &mut Agent, second: i64, fuse: &Fuse) -> Result<(), BooksError> {
        if sessions_at(second) != sessions_at(second - 1) {
            self.sessions(agent, second)?;
        }
        self.traffic(second);
        agent.books.drain(Micros::new(second * 1_000_000 + 2), &mut self.kernel, &[])?;
        if second % 2 == 0 {
            self.connection(agent, fuse, second % 4 == 0)?;
        }
        Ok(())
    }

    /// Plays the history with one fuse after the other, each in the agent that follows the one killed before; then to the
    /// end without. Returns the steps the first agent took.
    fn play(&mut self, fuses: &[Option<u64>]) -> u64 {
        let mut fuses = fuses.iter().copied().chain(std::iter::repeat(None)).map(Fuse::killing_at);
        let mut fuse = fuses.next().unwrap();
        let first = fuse.clone();
        let mut agent = None;
        let mut second = 0;
        while second < SECONDS {
            let done = match &mut agent {
                None => self.start(second, &fuse).map(|started| agent = Some(started)),
                Some(agent) => {
                    second += 1;
                    self.second(agent, second, &fuse)
                }
            };
            if let Err(error) = done {
                let text = error.to_string();
                assert!(text.contains("killed") || text.contains("Previous I/O error"), "{text}");
                agent = None;
                fuse = fuses.next().unwrap();
            }
        }
        let mut agent = agent.unwrap_or_else(|| self.start(SECONDS, &Fuse::default()).unwrap());
        let steps = first.taken();
        fuse.0.lock().unwrap().kill_at = None;
        self.kernel.fuse = Fuse::default();
        let end = Micros::new((SECONDS + 1) * 1_000_000);
        agent.books.drain(end, &mut self.kernel, &[]).unwrap();
        self.connection(&agent, &Fuse::default(), true).unwrap();
        steps
    }
}

#[test]
fn no_byte_is_lost_or_told_twice_wherever_the_agent_is_killed() {
    let mut undisturbed = World::default();
    let steps = undisturbed.play(&[None]);
    assert_eq!(undisturbed.orchestrator.sums, undisturbed.counted);
    assert_eq!(undisturbed.orchestrator.apps, undisturbed.counted_apps);
    assert!(undisturbed.counted.len() == 6 && steps > 150, "{steps} steps, {:?}", undisturbed.counted);

    let (mut repeats, mut starts) = (0, 0);
    for kill_at in 0..steps {
        let again = [Some(kill_at % 53)].into_iter().filter(|_| kill_at % 3 == 0).map(Some);
        for again in std::iter::once(None).chain(again.map(Option::flatten)) {
            let mut world = World::default();
            world.play(&[Some(kill_at), again]);
            assert_eq!(world.orchestrator.sums, world.counted, "killed at {kill_at}, then at {again:?}");
            assert_eq!(world.orchestrator.apps, world.counted_apps, "killed at {kill_at}, then at {again:?}");
            repeats += world.orchestrator.repeats;
            starts += world.starts;
        }
    }
    // The test bites: agents were started again, and batches did come twice.
    assert!(starts > 2 * steps && repeats > steps, "{starts} starts, {repeats} repeats of {steps} steps");
}

#[test]
fn what_the_data_plane_refuses_once_is_done_by_the_next_try() {
    let mut steps = 0;
    loop {
        let mut world = World::default();
        let mut agent = world.start(0, &Fuse::default()).unwrap();
        let fuse = Fuse::failing_once_at(steps);
        world.kernel.fuse = fuse.clone();
        for second in 1..SECONDS {
            let changed = world.sessions(&mut agent, second);
            let changed = changed.or_else(|_| world.sessions(&mut agent, second)).unwrap();
            let ids =
                |second| sessions_at(second).into_iter().map(|session| session.id).collect::<BTreeSet<_>>();
            let closed = &ids(second - 1) - &ids(second);
            assert_eq!(BTreeSet::from_iter(changed.closed), closed, "second {second}, step {steps} failed");
            let of = |session: &SessionFacts| {
                let slot = agent.books.accounts().slot_of(&session.id).unwrap();
                session.prefixes.iter().map(move |prefix| (*prefix, slot)).collect::<Vec<_>>()
            };
            let wanted: HashMap<IpNet, u32> = sessions_at(second).iter().flat_map(of).collect();
            assert_eq!(world.kernel.bound, wanted, "second {second}, step {steps} failed");
            world.traffic(second);
            // What fails is told with the next.
            let _ = agent.books.drain(Micros::new(second * 1_000_000 + 2), &mut world.kernel, &[]);
        }
        if fuse.taken() <= steps {
            break;
        }
        world.kernel.fuse = Fuse::default();
        agent.books.drain(Micros::new(SECONDS * 1_000_000), &mut world.kernel, &[]).unwrap();
        world.connection(&agent, &Fuse::default(), true).unwrap();
        assert_eq!(world.orchestrator.sums, world.counted, "step {steps} failed");
        steps += 1;
    }
    assert!(steps > 50, "{steps} steps");
}

#[test]
fn a_prefix_for_which_there_is_no_place_is_nobodys_until_there_is_one() {
    let mut world = World::default();
    world.kernel.places = Some(1);
    let mut agent = world.start(0, &Fuse::default()).unwrap();
    let mut set = |second: i64| {
        let changed = world.sessions(&mut agent, second).unwrap();
        let bound: Vec<_> = world.kernel.bound.keys().map(ToString::to_string).collect();
        (changed.without_place, bound)
    };
    assert_eq!(set(3), (1, vec![PREFIXES[0].to_owned()]));
    assert_eq!(set(4), (1, vec![PREFIXES[0].to_owned()]), "nothing has changed");
    // The one that had the place goes.
    assert_eq!(set(9), (1, vec![PREFIXES[1].to_owned()]));
    assert_eq!(set(1), (0, vec![PREFIXES[0].to_owned()]));
}

#[test]
fn a_full_spool_takes_what_no_agent_will_find_again() {
    let mut world = World::default();
    let file = OpenFile { content: Arc::default(), fuse: Fuse::default() };
    let db = Database::builder().create_with_backend(file).unwrap();
    let store = Arc::new(Store::with(db, Size(1), true).unwrap());
    let at = |second: i64| Micros::new(second * 1_000_000);
    let mut books = Books::open(store.clone(), &mut world.kernel, Boot([5; 16]), 5, at(0)).unwrap();
    world.traffic(1);
    assert!(books.drain(at(1), &mut world.kernel, &[]).unwrap().is_some());
    world.traffic(2);
    assert_eq!(books.drain(at(2), &mut world.kernel, &[]).unwrap(), None);
    assert_eq!(books.drain_last(at(2), &mut world.kernel, &[]).unwrap().batches, 1);
    let batches = store.batches_after(store.position(&[5; 16], 0).unwrap().unwrap_or_default(), 100).unwrap();
    for (_, batch) in batches {
        world.orchestrator.apply(&telemetry::Batch::decode(batch.as_slice()).unwrap());
    }
    assert_eq!(world.orchestrator.sums, world.counted);
}
