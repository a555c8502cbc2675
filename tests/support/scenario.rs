//! The demo's story as steps: subscriber A streams and gets more, B roams and is asked, C wants to be left alone.
//!
//! The same story is told as the demo, as an end-to-end test, and as tests in which daemons are killed between the
//! steps. Each step holds, or ends the story.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use usher_models::units::Bytes;

use crate::netns::Side;
use crate::packets::{Packets, Who};
use crate::process;
use crate::report::Report;
use crate::site::{Ground, Site};
use crate::views::{Cause, Push, text};
use crate::wait::{self, Seen};

/// Rates of the demo's `agent.yaml`, in bits per second.
const SD: u64 = 1_500_000;
const HD: u64 = 4_000_000;
const ROAMING: u64 = 256_000;
const LINE: u64 = 6_000_000;

/// Between two steps of the story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A and C stream at their plan's rate; nothing is decided yet.
    Streaming,
    /// The decision for A is made; its push may be under way.
    Decided,
    /// A has the higher rate.
    Raised,
    /// B has come; the message may be on its way.
    Roaming,
    /// B has tapped; the push may be under way.
    Tapped,
    /// B has the pass.
    Passing,
    /// Everything is back where it was.
    Ended,
}

/// Called between the steps.
pub type Disturb<'a> = &'a mut dyn FnMut(Point, &mut Site) -> Result<()>;

/// Where a device that is no gateway is asked, independently of Usher, what it runs.
pub trait Device {
    /// What the device applies to a subscriber's video; `None`: nothing.
    fn video(&self, subscriber: &str) -> Result<Option<String>>;
}

/// The cast.
pub struct Story {
    // Dropped in this order: players before the network they play in.
    packets: Packets,
    /// The installation.
    pub site: Site,
    /// What was shown so far.
    pub report: Report,
    device: Option<Box<dyn Device>>,
    patience: usize,
}

impl std::fmt::Debug for Story {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Story")
            .field("site", &self.site)
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}

impl Story {
    /// The stage: orchestrator and agent are up; the line is still unplugged.
    pub fn new(
        mut site: Site,
        packets: Packets,
        device: Option<Box<dyn Device>>,
        report: Report,
    ) -> Result<Self> {
        site.start_orchestrator()?;
        site.start_agent()?;
        Ok(Self { packets, site, report, device, patience: 1 })
    }

    /// Stays longer at each rate, for a recording that is to be played on slower machines.
    pub fn unhurried(&mut self) {
        self.patience = 2;
    }

    /// Tells it.
    pub fn play(&mut self, disturb: Disturb<'_>) -> Result<()> {
        if let Ground::Lab(lab) = self.site.ground() {
            lab.connect()?;
        }
        self.packets.appear(&self.site, Who::A)?;
        self.packets.appear(&self.site, Who::C)?;
        self.stream(disturb)?;
        self.raise(disturb)?;
        self.roam(disturb)?;
        self.tap(disturb)?;
        self.leave_alone()?;
        self.end(disturb)?;
        self.count()
    }

    /// 1. A streams at the plan's rate, and the flow is named.
    fn stream(&mut self, disturb: Disturb<'_>) -> Result<()> {
        let settled = self.done(Who::A, Cause::Plan).and_then(|push| {
            ensure!(push.setting("video") == "sd", "the push says {}", push.0["settings"]);
            Ok(((), shown(&push)))
        });
        self.report.step("the plan's settings are in force for A", settled)?;
        let started = Instant::now();
        self.packets.fetch(&self.site, Who::A)?;
        self.packets.fetch(&self.site, Who::C)?;
        disturb(Point::Streaming, &mut self.site)?;
        let measured = self.packets.rate(&self.site, Who::A, (started, 3), about(SD));
        self.report.video_bps.before =
            self.report.step("A streams at the plan's SD rate", measured.map(|rate| (rate, of(rate, SD))))?;
        let named = wait::until("a verdict on A's flow, and bytes counted for its app", Duration::from_secs(10), || {
            let apps = self.site.apps("sub-a")?;
            let is_counted = |app: &&Value| {
                text(app, "/app") == "streams" && app["bytes"].as_u64().is_some_and(|bytes| bytes > 0)
            };
            let video = apps.iter().find(is_counted).cloned();
            Ok(video.map_or_else(|| Seen::NotYet(format!("{apps:?}")), Seen::Done))
        })
        .and_then(|app| {
            let verdict_ms = app["verdict_us"].as_f64().context("a verdict without its time")? / 1e3;
            let (name, class, via) = (text(&app, "/app"), text(&app, "/class"), text(&app, "/via"));
            ensure!(class == "video", "the app {name} is of class {class}");
            let bytes = Bytes(app["bytes"].as_u64().unwrap_or_default());
            let seen = format!(
                "app {name}, class {class}, by {via}, {verdict_ms:.1} ms after the first packet, {bytes} so far"
            );
            Ok((verdict_ms, seen))
        });
        self.report.verdict_ms = self.report.step("the agent names the flow from its first bytes", named)?;
        Ok(())
    }

    /// 2. The moment, the push to both elements, the higher rate.
    fn raise(&mut self, disturb: Disturb<'_>) -> Result<()> {
        let decided = wait::until("a decision for A", Duration::from_secs(40), || {
            self.site.expect_running()?;
            let decisions = self.site.decisions("sub-a")?;
            let chosen = decisions.iter().find(|decision| text(decision, "/chosen") == "hd_evening").cloned();
            Ok(chosen.map_or_else(|| Seen::NotYet(format!("{} decisions", decisions.len())), Seen::Done))
        })
        .map(|decision| ((), format!("moment {}, action hd_evening", text(&decision, "/moment"))));
        self.report.step("the orchestrator detects hd_starved and decides", decided)?;
        disturb(Point::Decided, &mut self.site)?;
        let pushed = self.done(Who::A, Cause::Decision).and_then(|push| {
            ensure!(push.setting("video") == "hd", "the push says {}", push.0["settings"]);
            self.took_part(&push)?;
            let seen = shown(&push);
            Ok((push, seen))
        });
        let push = self.report.step("video: hd is pushed in one transaction", pushed)?;
        self.report.enforced_ms.gateway = push.enforced_ms("gateway");
        self.report.enforced_ms.netconf = push.enforced_ms("netconf");
        self.device_runs("the NETCONF device runs hd for A", Who::A, "hd")?;
        let rate = self.packets.rate(&self.site, Who::A, (Instant::now(), 8 * self.patience), about(HD));
        self.report.video_bps.after = self
            .report
            .step("the same player measures the HD rate", rate.map(|rate| (rate, of(rate, HD))))?;
        disturb(Point::Raised, &mut self.site)
    }

    /// 3a. B comes from abroad: told once, and held to the limit.
    fn roam(&mut self, disturb: Disturb<'_>) -> Result<()> {
        self.site.edit("sessions.yaml", |sessions| sessions + include_str!("../demo/roamer.yaml"))?;
        self.packets.appear(&self.site, Who::B)?;
        disturb(Point::Roaming, &mut self.site)?;
        let told = wait::until("a message to B", Duration::from_secs(20), || {
            self.site.expect_running()?;
            let messages = self.site.outbox()?;
            Ok(messages
                .into_iter()
                .next()
                .map_or_else(|| Seen::NotYet("an empty outbox".to_owned()), Seen::Done))
        })
        .and_then(|message| {
            ensure!(text(&message, "/to") == "sub-b", "the message is to {}", text(&message, "/to"));
            Ok(((), format!("\"{}\"", text(&message, "/text"))))
        });
        self.report.step("B appears in a foreign network and gets one message", told)?;
        let started = Instant::now();
        self.packets.fetch(&self.site, Who::B)?;
        let held = self.packets.rate(&self.site, Who::B, (started, 3 * self.patience), about(ROAMING));
        self.report.roaming_bps.limited =
            self.report.step("B is held to the roaming limit", held.map(|rate| (rate, of(rate, ROAMING))))?;
        Ok(())
    }

    /// 3b. B opens the link; opening it again changes nothing.
    fn tap(&mut self, disturb: Disturb<'_>) -> Result<()> {
        let messages = self.site.outbox()?;
        let link = text(messages.first().context("a message")?, "/link").to_owned();
        let tapped = self.look(&link).and_then(|()| {
            let (status, page) = self.open(&link, "POST")?;
            ensure!(status == 200, "the tap was answered with {status}: {page}");
            Ok(((), "looking changed nothing, the tap was accepted".to_owned()))
        });
        self.report.step("B opens the link and taps", tapped)?;
        disturb(Point::Tapped, &mut self.site)?;
        let pushed = self.done(Who::B, Cause::Tap).and_then(|push| {
            ensure!(push.setting("roam_pass") == "day", "the push says {}", push.0["settings"]);
            Ok(((), shown(&push)))
        });
        self.report.step("the pass is pushed", pushed)?;
        let now = (Instant::now(), 20 * self.patience);
        let rate = self.packets.rate(&self.site, Who::B, now, about(LINE));
        self.report.roaming_bps.with_pass = self
            .report
            .step("B's traffic flows at the line's rate", rate.map(|rate| (rate, of(rate, LINE))))?;
        disturb(Point::Passing, &mut self.site)?;
        let again = self.again(&link).map(|answer| ((), answer));
        self.report.step("opening the link again changes nothing", again)
    }

    fn look(&self, link: &str) -> Result<()> {
        let (status, page) = self.open(link, "GET")?;
        ensure!(status == 200, "looking at the link was answered with {status}: {page}");
        ensure!(self.site.push("sub-b", Cause::Tap)?.is_none(), "looking at the link already pushed");
        Ok(())
    }

    fn again(&self, link: &str) -> Result<String> {
        let before = (self.site.pushes("sub-b")?.len(), self.site.outbox()?);
        let (status, page) = self.open(link, "POST")?;
        ensure!(status == 200, "the second tap was answered with {status}");
        ensure!(page.contains("already"), "the second tap was answered with: {page}");
        let after = (self.site.pushes("sub-b")?.len(), self.site.outbox()?);
        ensure!(before == after, "the second tap changed {before:?} to {after:?}");
        ensure!(after.1.len() == 1, "one message was to be sent, not {:?}", after.1);
        Ok("already accepted".to_owned())
    }

    /// 4. C gets nothing, and `usher explain` says why.
    fn leave_alone(&mut self) -> Result<()> {
        let explained = self.explain().map(|why| ((), why));
        self.report.step("C, on video too but without consent, gets nothing", explained)
    }

    fn explain(&self) -> Result<String> {
        let explained = wait::until("a decision about C", Duration::from_secs(20), || {
            let explained = self.site.ask(&["explain", "sub-c"])?;
            let decided = explained["decisions"].as_array().is_some_and(|decisions| !decisions.is_empty());
            Ok(Seen::when(decided, explained.clone(), explained))
        })?;
        let stopped = &explained["decisions"][0]["candidates"][0]["stopped_by"];
        ensure!(text(stopped, "/gate") == "consent", "C was stopped by {stopped}");
        ensure!(self.site.push("sub-c", Cause::Decision)?.is_none(), "something was pushed for C");
        ensure!(
            self.site.outbox()?.iter().all(|message| text(message, "/to") != "sub-c"),
            "a message was sent to C"
        );
        Ok(format!("usher explain: stopped by consent, {}", text(stopped, "/why")))
    }

    /// 5. Settings expire by themselves.
    fn end(&mut self, disturb: Disturb<'_>) -> Result<()> {
        for (who, name) in [(Who::A, "A's settings expire"), (Who::B, "B's pass expires")] {
            let ended = self.done(who, Cause::Expiry).and_then(|push| {
                ensure!(push.setting("video") == "sd", "the push says {}", push.0["settings"]);
                ensure!(push.setting("roam_pass") == "none", "the push says {}", push.0["settings"]);
                Ok(((), shown(&push)))
            });
            self.report.step(name, ended)?;
        }
        self.device_runs("the NETCONF device is back where it was for A", Who::A, "sd")?;
        let since = Instant::now();
        let back =
            self.packets.rate(&self.site, Who::A, (since, 2 * self.patience), about(SD)).and_then(|a| {
                let b = self.packets.rate(&self.site, Who::B, (since, 2), about(ROAMING))?;
                Ok(((), format!("A {}, B {}", mbit(a), mbit(b))))
            });
        self.report.step("both are back at the rates they had", back)?;
        disturb(Point::Ended, &mut self.site)
    }

    /// The books: what was counted is what passed, byte for byte, and what the orchestrator knows.
    fn count(&mut self) -> Result<()> {
        let counted = self.reconcile();
        self.report.step("every byte is accounted for", counted)
    }

    fn reconcile(&mut self) -> Result<((), String)> {
        let passed = self.packets.end(&self.site)?;
        self.report.bytes.interface = passed;
        let mut counted = 0;
        let equal = wait::until("usage equal to what passed", Duration::from_secs(40), || {
            self.site.expect_running()?;
            counted = self.frame_bytes()?;
            Ok(Seen::when(counted == passed, (), format!("{counted} of {passed} bytes")))
        });
        self.report.bytes.probe = counted;
        equal?;
        Ok(((), format!("{counted} bytes of frames counted, {passed} passed")))
    }

    /// All the orchestrator was told of, as bytes of Ethernet frames, with what the data plane left out of usage.
    fn frame_bytes(&self) -> Result<u64> {
        const ETHERNET: u64 = 14;
        let frames = |row: &crate::views::Usage| {
            // What is held back on its way down never reaches the interface; on its way up it already has.
            let held = if row.direction == "up" { (row.dropped_bytes, row.dropped_packets) } else { (0, 0) };
            row.bytes + held.0 + ETHERNET * (row.packets + held.1)
        };
        Ok(self.site.usage()?.iter().map(frames).sum::<u64>() + self.site.outside_usage()?)
    }

    fn done(&mut self, who: Who, cause: Cause) -> Result<Push> {
        let subscriber = who.subscriber();
        wait::until(&format!("a push for {subscriber} ({cause:?})"), Duration::from_secs(45), || {
            self.site.expect_running()?;
            Ok(match self.site.push(subscriber, cause)? {
                Some(push) if push.state() == "done" => Seen::Done(push),
                Some(push) => Seen::NotYet(push.0.to_string()),
                None => Seen::NotYet("no such push".to_owned()),
            })
        })
    }

    fn took_part(&self, push: &Push) -> Result<()> {
        let parts = push.parts();
        let holds =
            |kind: &str| parts.iter().any(|(name, state)| name.starts_with(kind) && state == "confirmed");
        ensure!(holds("gateway"), "the gateway did not confirm: {parts:?}");
        ensure!(self.device.is_none() || holds("netconf"), "the device did not confirm: {parts:?}");
        Ok(())
    }

    fn device_runs(&mut self, step: &str, who: Who, value: &str) -> Result<()> {
        let Some(device) = &self.device else { return Ok(()) };
        let runs = device.video(who.subscriber()).and_then(|video| {
            ensure!(video.as_deref() == Some(value), "the device runs {video:?}");
            Ok(((), "read from the device itself".to_owned()))
        });
        self.report.step(step, runs)
    }

    /// B's browser opens a link, over B's own line where there is one; gives the status and the page.
    fn open(&self, link: &str, method: &str) -> Result<(u16, String)> {
        let arguments = ["-sS", "--max-time", "10", "-X", method, "-w", "\n%{http_code}", link];
        let printed = match self.site.ground() {
            Ground::Lab(lab) => {
                let own = ["--interface", "10.77.0.12"];
                process::run(lab.inside(Side::Subscribers, "curl", own).args(arguments))?
            }
            Ground::Loopback(_) => process::run(&mut process::command("curl", arguments))?,
        };
        let (page, status) = printed.rsplit_once('\n').context("curl prints a status")?;
        Ok((status.trim().parse().context("a status")?, page.to_owned()))
    }
}

/// What measures as an enforced rate: content is a little less than packets, for headers and repeats are no content.
fn about(enforced: u64) -> RangeInclusive<u64> {
    enforced * 70 / 100..=enforced * 110 / 100
}

fn of(measured: u64, enforced: u64) -> String {
    format!("{} of {}", mbit(measured), mbit(enforced))
}

/// A rate for people.
#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
fn mbit(bits: u64) -> String {
    format!("{:.2} Mbit/s", bits as f64 / 1e6)
}

/// A push for people.
fn shown(push: &Push) -> String {
    let parts: Vec<_> = push.parts().into_iter().map(|(name, state)| format!("{name} {state}")).collect();
    format!("revision {}: {}", push.revision(), parts.join(", "))
}
