//! The folder a daemon keeps days in: a new file at midnight (UTC), with another policy, and where one has become large.
//!
//! A day is fed from the ledger's journal, each time a snapshot of the engine is written and before the journal is forgotten
//! up to there: recording costs the hot path nothing, and a kill loses nothing, for what is not in the day yet is still in the
//! journal. The folder is bounded in time and in bytes; the oldest day goes first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read as _, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use usher_models::units::Micros;

use super::{About, Day, DayError, DayWriter};
use crate::engine::snapshot::Snapshot;
use crate::ledger::{Journaled, Ledger};
use crate::policy::Policy;

/// Inputs read of the journal at a time.
const AT_ONCE: u32 = 256;
/// Bytes of a file read or written at a time.
const BUFFER: usize = 1 << 20;
/// A file is no larger than this part of the whole folder.
const PARTS: u64 = 8;
/// What a day's file is called, by its beginning, UTC: to the microsecond, for another policy may begin another day in the same
/// second.
const NAME: &str = "%Y-%m-%dT%H%M%S.%6fZ";
/// What a day's file name ends with.
const EXTENSION: &str = "day";

/// Where days are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordConfig {
    /// The folder. Made where it is missing.
    pub dir: PathBuf,
    /// How long a day is kept after its end.
    #[serde(default = "a_week", deserialize_with = "duration")]
    pub keep: Duration,
    /// Most gigabytes of all days together; the oldest go first.
    #[serde(default = "ten")]
    pub max_gb: u64,
}

/// `7d`, `36h`: a day is 24 hours.
fn duration<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
    let span = text.parse::<jiff::Span>().ok();
    let time = span.and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok());
    time.and_then(|time| Duration::try_from(time).ok()).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "`{text}` is no time: expected a number and a unit, as `7d` or `36h`"
        ))
    })
}

const fn a_week() -> Duration {
    Duration::from_hours(7 * 24)
}

const fn ten() -> u64 {
    10
}

/// A file in the folder.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DayFile {
    /// Where.
    pub path: PathBuf,
    /// How large, bytes.
    pub bytes: u64,
    /// When something was last added.
    pub written: jiff::Timestamp,
}

impl DayFile {
    /// When the day began, by its name; `None`: somebody gave it another one.
    pub fn began(&self) -> Option<jiff::Timestamp> {
        let stem = self.path.file_stem()?.to_str()?;
        let civil = jiff::civil::DateTime::strptime(NAME, stem).ok()?;
        civil.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    }
}

/// What keeping came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Inputs added to a day.
    pub inputs: u64,
    /// Days that went because of their age.
    pub aged: u64,
    /// Days that went for want of room.
    pub crowded: u64,
    /// Bytes of all days now.
    pub bytes: u64,
}

/// Keeps days. One process owns the folder.
#[derive(Debug)]
pub struct Keeper {
    config: RecordConfig,
    open: Option<Open>,
    /// Whether the newest file was looked for.
    resumed: bool,
}

/// The day being written.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    day: String,
    revision: String,
    writer: DayWriter<BufWriter<File>>,
}

impl Keeper {
    /// Looks at nothing yet.
    pub fn new(config: RecordConfig) -> Self {
        Self { config, open: None, resumed: false }
    }

    /// Adds what the journal has up to the snapshot, and begins a new day with it where it is time. After this the journal
    /// may forget what is before the snapshot. Blocks.
    pub fn keep(
        &mut self,
        ledger: &Ledger,
        snapshot: &Snapshot,
        policy: &Policy,
        now: Micros,
    ) -> Result<Recorded, DayError> {
        let mut kept = Recorded { inputs: self.add(ledger, snapshot.position)?, ..Recorded::default() };
        let day = day_of(now);
        let fits = |open: &Open| {
            let size = fs::metadata(&open.path).map_or(0, |file| file.len());
            open.day == day
                && open.revision == policy.revision()
                && open.writer.position == snapshot.position
                && size < self.config.max_gb.max(1) * (1_000_000_000 / PARTS)
        };
        if !self.open.as_ref().is_some_and(fits) {
            self.finish()?;
            self.begin(snapshot, policy, now, day)?;
        }
        self.prune(&mut kept)?;
        Ok(kept)
    }

    /// Adds what the journal still has and ends the day: the engine is about to be another one. Blocks.
    pub fn end(&mut self, ledger: &Ledger) -> Result<(), DayError> {
        self.add(ledger, u64::MAX >> 1)?;
        self.finish()
    }

    /// After an error: what was written stays as it is, and the next snapshot begins a new file.
    pub fn give_up(&mut self) {
        self.open = None;
    }

    fn add(&mut self, ledger: &Ledger, until: u64) -> Result<u64, DayError> {
        if !self.resumed {
            self.resumed = true;
            self.open = resume(&self.config.dir)?;
        }
        let Some(open) = &mut self.open else { return Ok(0) };
        let before = open.writer.entries;
        loop {
            let rows = ledger.journal_after(open.writer.position, AT_ONCE)?;
            let Some(first) = rows.first() else { break };
            // The journal no longer reaches back to where this day ends.
            if first.position != open.writer.position + 1 {
                break;
            }
            let mut came_to_end = (rows.len() as u64) < u64::from(AT_ONCE);
            for row in rows {
                // Another engine begins where a position is left out.
                if row.position > until || row.position != open.writer.position + 1 {
                    came_to_end = true;
                    break;
                }
                open.writer.entry(&row)?;
            }
            if came_to_end {
                break;
            }
        }
        let added = open.writer.entries - before;
        open.writer.file.flush()?;
        open.writer.file.get_ref().sync_data()?;
        Ok(added)
    }

    fn finish(&mut self) -> Result<(), DayError> {
        if let Some(open) = self.open.take() {
            open.writer.finish()?.get_ref().sync_data()?;
        }
        Ok(())
    }

    fn begin(
        &mut self,
        snapshot: &Snapshot,
        policy: &Policy,
        now: Micros,
        day: String,
    ) -> Result<(), DayError> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.config.dir)?;
        let name = format!("{}.{EXTENSION}", stamp(now).strftime(NAME));
        let path = self.config.dir.join(name);
        let unfinished = path.with_extension("unfinished");
        // Who used what when is nobody else's business.
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        let about = About::of(snapshot, policy, now);
        let mut writer = DayWriter::begin(BufWriter::with_capacity(BUFFER, file), &about, snapshot)?;
        writer.file.flush()?;
        writer.file.get_ref().sync_data()?;
        fs::rename(&unfinished, &path)?;
        File::open(&self.config.dir)?.sync_all()?;
        self.open = Some(Open { path, day, revision: about.revision, writer });
        Ok(())
    }

    fn prune(&self, kept: &mut Recorded) -> Result<(), DayError> {
        let current = self.open.as_ref().map(|open| open.path.as_path());
        let mut days = listed(&self.config.dir)?;
        let oldest = jiff::Timestamp::try_from(SystemTime::now() - self.config.keep).unwrap_or_default();
        let mut bytes: u64 = days.iter().map(|day| day.bytes).sum();
        let most = self.config.max_gb.max(1).saturating_mul(1_000_000_000);
        days.retain(|day| Some(day.path.as_path()) != current);
        for day in days {
            let is_aged = day.written < oldest;
            if is_aged || bytes > most {
                fs::remove_file(&day.path)?;
                bytes -= day.bytes;
                *(if is_aged { &mut kept.aged } else { &mut kept.crowded }) += 1;
            }
        }
        kept.bytes = bytes;
        Ok(())
    }
}

impl About {
    fn of(snapshot: &Snapshot, policy: &Policy, now: Micros) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            began: now,
            position: snapshot.position,
            policy_file: policy.file_name().to_owned(),
            policy: policy.text().to_owned(),
            revision: policy.revision().to_owned(),
        }
    }
}

/// The days in a folder, oldest first.
pub fn listed(dir: &Path) -> io::Result<Vec<DayFile>> {
    let mut days = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(days),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            let file = fs::metadata(&path)?;
            let written = jiff::Timestamp::try_from(file.modified()?).unwrap_or_default();
            days.push(DayFile { path, bytes: file.len(), written });
        }
    }
    days.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(days)
}

/// The newest day, where it is not over, to be gone on with: what a kill left half written at its end is cut off. A file that
/// cannot be read is left alone.
fn resume(dir: &Path) -> Result<Option<Open>, DayError> {
    let Some(newest) = listed(dir)?.pop() else { return Ok(None) };
    let mut file = OpenOptions::new().read(true).write(true).open(&newest.path)?;
    let Ok((about, whole, state)) = scan(&file) else { return Ok(None) };
    let Some((check, position, entries)) = state else { return Ok(None) };
    file.set_len(whole)?;
    file.seek(SeekFrom::Start(whole))?;
    let writer = DayWriter { file: BufWriter::with_capacity(BUFFER, file), check, position, entries };
    let day = day_of(about.began);
    Ok(Some(Open { path: newest.path, day, revision: about.revision, writer }))
}

type State = Option<(crate::engine::io::Digest, u64, u64)>;

/// The head of a day, where its last whole entry ends, and how to go on from there; `None`: it is over.
fn scan(file: &File) -> Result<(About, u64, State), DayError> {
    let mut day = Day::open(BufReader::with_capacity(BUFFER, file))?;
    day.skip_engine()?;
    let mut whole = day.file.stream_position()?;
    loop {
        match day.next_row() {
            Ok(Some(_)) => whole = day.file.stream_position()?,
            Ok(None) if day.is_finished() => return Ok((day.about, whole, None)),
            Ok(None) | Err(DayError::CutOff(_) | DayError::Damaged(_)) => break,
            Err(error) => return Err(error),
        }
    }
    let state = (day.check, day.position, day.entries);
    Ok((day.about, whole, Some(state)))
}

/// Copies the newest day and what came since from the ledger of a daemon that may be running, to one file that is whole.
/// Gives the number of inputs.
pub fn export(dir: &Path, ledger: &Path, to: &mut (impl Write + Seek)) -> Result<Option<u64>, DayError> {
    let Some(newest) = listed(dir)?.pop() else { return Ok(None) };
    let file = File::open(&newest.path)?;
    let (_, whole, state) = scan(&file)?;
    (&file).seek(SeekFrom::Start(0))?;
    io::copy(&mut (&file).take(whole), to)?;
    let Some((check, position, entries)) = state else {
        // It is over: its end is all that is missing.
        (&file).seek(SeekFrom::Start(whole))?;
        io::copy(&mut &file, to)?;
        (&file).seek(SeekFrom::Start(0))?;
        let mut day = Day::open(BufReader::with_capacity(BUFFER, &file))?;
        day.skip_engine()?;
        while day.next_row()?.is_some() {}
        return Ok(Some(day.entries()));
    };
    let mut writer = DayWriter { file: to, check, position, entries };
    loop {
        let rows: Vec<Journaled> = Ledger::journal_of(ledger, writer.position, AT_ONCE)?;
        let before = writer.entries;
        for row in rows {
            if row.position == writer.position + 1 {
                writer.entry(&row)?;
            }
        }
        if writer.entries == before {
            break;
        }
    }
    let entries = writer.entries;
    writer.finish()?;
    Ok(Some(entries))
}

fn stamp(at: Micros) -> jiff::Timestamp {
    jiff::Timestamp::from_microsecond(at.get()).unwrap_or_default()
}

fn day_of(at: Micros) -> String {
    stamp(at).strftime("%Y-%m-%d").to_string()
}
