//! Other programs: found, run to their end, or kept running with their output in a file.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::wait::{self, Seen};

/// How long a program may take that is run to its end: far longer than any does.
const RUNS_WITHIN: Duration = Duration::from_mins(2);

/// One line to the person watching.
pub fn say(line: &str) {
    // A closed terminal is no reason to stop cleaning up.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Whether a program is in the path, or in the system's own folders, which an ordinary user's path may lack.
pub fn installed(program: &str) -> bool {
    find(program).is_some()
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// The folder of this project's own programs: the one this one was built into.
pub fn built() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    let folder = own.parent().context("a program lies in a folder")?;
    // Test programs lie one folder deeper.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_path_buf())
}

/// One of this project's own programs.
pub fn built_program(name: &str) -> Result<PathBuf> {
    let program = built()?.join(name);
    if !program.is_file() {
        bail!("{} is not built: run `make build`, or `make test`", program.display());
    }
    Ok(program)
}

/// Runs a program to its end; gives what it printed, or an error with what it complained of.
pub fn run(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = output(command)?;
    if !status.success() {
        bail!("`{}` failed ({status}): {}", shown(command), String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Runs a program to whatever end it takes; kills it, and fails, where it takes none within two minutes.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("run `{}`", shown(command)))?;
    let handle = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .with_context(|| format!("hold on to `{}`", shown(command)))?;
    let (ended, end) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let late = end.recv_timeout(RUNS_WITHIN).is_err_and(|why| why == mpsc::RecvTimeoutError::Timeout);
            if late {
                let _ = pidfd_send_signal(&handle, Signal::KILL);
            }
            late
        });
        let output = child.wait_with_output();
        drop(ended);
        let late = watch.join().unwrap_or(false);
        let output = output.with_context(|| format!("run `{}`", shown(command)))?;
        if late {
            bail!(
                "`{}` had not ended after {} s, and was killed; it had printed: {}{}",
                shown(command),
                RUNS_WITHIN.as_secs(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
        }
        Ok(output)
    })
}

/// A command from words.
pub fn command<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: I,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// A program within a network namespace; nothing else of its surroundings is another.
pub fn within(namespace: &Path, program: impl AsRef<OsStr>) -> Command {
    // Not `ip netns exec`: that mounts a fresh /sys, in which /sys/fs/bpf is missing.
    let mut command = command("nsenter", [format!("--net={}", namespace.display())]);
    command.arg("--").arg(program);
    command
}

/// The unit by which the agent runs where it is installed.
const UNIT: &str = include_str!("../../deploy/systemd/usher-agent.service");

/// A program of root's that has no more of root's power than the unit leaves the agent: the words before it.
pub fn as_the_unit() -> Result<Vec<String>> {
    let bound = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let bound = bound.context("the agent's unit bounds capabilities")?.split_whitespace();
    let words = bound.map(|capability| {
        let name = capability.strip_prefix("CAP_").with_context(|| format!("capability `{capability}`"))?;
        Ok(format!(",+{}", name.to_ascii_lowercase()))
    });
    let set = words.collect::<Result<String>>()?;
    Ok(vec!["setpriv".to_owned(), format!("--bounding-set=-all{set}"), "--no-new-privs".to_owned()])
}

/// A command as one would type it.
fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A program kept running; killed when dropped.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command`; its output is added to `<name>.log` in `folder`.
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let also = file.try_clone().context("share the log file")?;
        command.stdin(Stdio::null()).stdout(file).stderr(also);
        let child = command.spawn().with_context(|| format!("start `{}`", shown(&command)))?;
        remember(folder, child.id())?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed.
    pub fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its last words, for an error message.
    pub fn last_words(&self) -> String {
        let printed = self.printed();
        let lines: Vec<_> = printed.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Fails where it has ended though it should be running.
    pub fn expect_running(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("look after {}", self.name))? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status}):\n{}", self.name, self.last_words()),
        }
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self, within: Duration) -> Result<std::process::ExitStatus> {
        let name = self.name.clone();
        wait::until(&format!("the end of {name}"), within, || {
            Ok(match self.child.try_wait()? {
                Some(status) => Seen::Done(status),
                None => Seen::NotYet("still running".to_owned()),
            })
        })
    }

    /// Asks it to stop, as an operator's service manager does, and waits for the end.
    pub fn stop(&mut self, within: Duration) -> Result<std::process::ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        rustix::process::kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("signal {}", self.name))
    }

    /// `kill -9`, and gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for the end of {}", self.name))?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Notes a process that was started, so that a later run can end it should this one die first.
fn remember(folder: &Path, pid: u32) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(folder.join("processes"))?;
    writeln!(file, "{pid} {}", started_at(pid).unwrap_or_default())?;
    Ok(())
}

/// Ends the processes noted in `folder`, and in folders directly below it, that still run.
pub fn end_remembered(folder: &Path) {
    for below in fs::read_dir(folder).into_iter().flatten().flatten() {
        end_noted(&below.path());
    }
    end_noted(folder);
}

fn end_noted(folder: &Path) {
    let Ok(text) = fs::read_to_string(folder.join("processes")) else { return };
    for line in text.lines() {
        let Some((pid, since)) = line.split_once(' ') else { continue };
        let Ok(pid) = pid.parse::<u32>() else { continue };
        // The number may have been given to another process since.
        if started_at(pid).is_some_and(|start| start == since) {
            kill(pid);
        }
    }
}

/// `kill -9` by number.
pub fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// When a process started, in the kernel's ticks since its own start (field 22 of proc(5) stat).
fn started_at(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19).map(str::to_owned)
}

/// Whether a process runs.
pub fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
