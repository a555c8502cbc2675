//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage
  3  no such subscriber, element, push, ...
  4  refused, or the policy has mistakes
  5  the orchestrator cannot be reached
  6  a replay led to something else than was recorded

Examples:
  usher status
  usher explain line-7                 why was, or was nothing, done for this line?
  usher get sessions --agent gw-1
  usher push list --state needs_repair
  usher lint policy.yaml --profiles profiles.yaml";

/// Watch, ask and stop an Usher orchestrator.
#[derive(Debug, Parser)]
#[command(name = "usher", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
#[command(max_term_width = 110)]
pub struct Cli {
    /// How to reach the orchestrator, and how to print.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// `5m`, `90s`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let span: Option<jiff::Span> = text.parse().ok();
    let time = span.and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok());
    let time = time.and_then(|time| Duration::try_from(time).ok());
    time.ok_or_else(|| "expected a time, as 5m or 90s".to_owned())
}

/// Options every command takes.
#[derive(Debug, Args)]
pub struct Global {
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
    /// The orchestrator's Unix socket
    #[arg(
        long,
        global = true,
        env = "USHER_SOCKET",
        value_name = "PATH",
        default_value = "/run/usher/orchestrator.sock",
        help_heading = "Reaching the orchestrator"
    )]
    pub socket: PathBuf,
    /// Reach it from afar instead: https://HOST[:PORT]
    #[arg(
        long,
        global = true,
        env = "USHER_URL",
        value_name = "URL",
        help_heading = "Reaching the orchestrator"
    )]
    pub url: Option<String>,
    /// File that holds the token for --url
    #[arg(
        long,
        global = true,
        env = "USHER_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Reaching the orchestrator"
    )]
    pub token_file: Option<PathBuf>,
    /// Certificates (PEM) of the authorities that vouch for --url
    #[arg(
        long,
        global = true,
        env = "USHER_CA",
        value_name = "FILE",
        help_heading = "Reaching the orchestrator"
    )]
    pub ca: Option<PathBuf>,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: the API's own answer
    Json,
    /// The same as YAML
    Yaml,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Is everything well?
    #[command(after_help = "Example:\n  usher status -o json | jq .pushes_needing_repair")]
    Status,
    /// List what there is
    #[command(
        after_help = "Examples:\n  usher get decisions --subscriber line-7 --limit 5\n  usher get usage -o json"
    )]
    Get(GetArgs),
    /// Show one thing in full
    #[command(
        after_help = "Examples:\n  usher describe subscriber line-7\n  usher describe element netconf:bng-1"
    )]
    Describe {
        /// What kind of thing
        #[arg(value_enum, value_name = "KIND")]
        kind: Describable,
        /// Its name or id
        id: String,
    },
    /// Why something was, or was not, done for a subscriber; changes nothing
    #[command(
        after_help = "Examples:\n  usher explain line-7\n  usher explain line-7 --at 2026-11-21T20:15:00Z\n\nWith --at, decisions are those up to then; facts and moments are of then where a recorded day reaches there, else of now."
    )]
    Explain {
        /// The subscriber's id
        subscriber: String,
        /// As of when: RFC 3339; now unless given
        #[arg(long, value_name = "TIME")]
        at: Option<jiff::Timestamp>,
        /// The recorded day that --at is in; the orchestrator's own unless given
        #[arg(long, value_name = "FILE", requires = "at")]
        day: Option<PathBuf>,
        /// How many decisions to go back
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Check a policy file; needs no orchestrator
    #[command(
        after_help = "Examples:\n  usher lint policy.yaml\n  usher lint policy.yaml --profiles profiles.yaml --strict -o json\n  generate-policy | usher lint -"
    )]
    Lint {
        /// The policy file; `-` reads standard input
        policy: PathBuf,
        /// The profiles it is to work with
        #[arg(long, value_name = "FILE")]
        profiles: Option<PathBuf>,
        /// Warnings are mistakes as well (exit code 4)
        #[arg(long)]
        strict: bool,
    },
    /// Play a recorded day again: does it lead to the same decisions, and what would another policy have done?
    #[command(
        after_help = "Examples:\n  usher replay 2026-11-21T000012Z.day\n  usher replay day.day --policy new.yaml -o json | jq .other.would_be_told\n\nNothing is pushed, sent or written, and no orchestrator is needed. Under another policy people tap where the same\nmessage is sent to them for the same reason; what they would have done with other messages no replay knows.\nExit code 6: it led to something else than was recorded."
    )]
    Replay {
        /// The day's file: `usher-orchestrator record` lists and copies them
        day: PathBuf,
        /// Beside it, under this policy
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// How many subscribers to name of each kind
        #[arg(long, default_value_t = 10, value_name = "COUNT")]
        names: u32,
    },
    /// What would change if a policy were put in force, from the newest recorded day; changes nothing
    #[command(
        after_help = "Examples:\n  usher plan --policy new.yaml\n  usher plan                          the policy file as it is on the disk now\n  usher plan --policy new.yaml --day 2026-11-21T000012Z.day -o yaml\n\nThe day is played in this process, beside the orchestrator, which goes on undisturbed."
    )]
    Plan {
        /// The policy; the orchestrator's own file unless given
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// The day; the orchestrator's newest unless given
        #[arg(long, value_name = "FILE")]
        day: Option<PathBuf>,
        /// How many subscribers to name of each kind
        #[arg(long, default_value_t = 10, value_name = "COUNT")]
        names: u32,
    },
    /// What messages brought, and what each would have brought had it always been said; changes nothing
    #[command(
        after_help = "Examples:\n  usher uplift\n  usher uplift --since 2026-11-01T00:00:00Z --policy 7f3a90c14b22d8e6\n  usher uplift --credit 2h -o json | jq '.actions[] | {action, style, always}'\n\nACCEPTED and GAIN are of what was said: the share of settled messages that were accepted, and the value less cost to the\ncustomer a message, in the policy's money. IPW and SNIPS estimate the share had the action always been said where it had a\nchance, from the logged chance of each pick: by inverse probability weighting, and self-normalised. Bounds are those of\n95 %, by the normal approximation. Nothing is offered to people who are held out, so all of it is over doing nothing; what\nthey bought by themselves is not known. HELPED is the share of reconfigurations after which quality rose and would not have\nby itself, as learnt against people at the same moment for whom nothing was done; JUDGED fades with choose.learn.half_life. Below 100 settled messages, 5 accepted or 5 not, no figure is given."
    )]
    Uplift {
        /// Only decisions from then on: RFC 3339; all that are kept unless given
        #[arg(long, value_name = "TIME")]
        since: Option<jiff::Timestamp>,
        /// Only decisions of this revision of the policy
        #[arg(long, value_name = "REVISION")]
        policy: Option<String>,
        /// A tap later than this after its decision is not counted; 1 s to 31 days
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
        credit: Duration,
    },
    /// Put a policy in force, on trial: unless it is confirmed in time, the one before comes back by itself
    #[command(
        after_help = "Examples:\n  usher apply new.yaml --confirm-within 5m && usher status && usher confirm\n  usher apply new.yaml                also 5 minutes\n\nA restart, or a kill, in between changes nothing about it. The policy's file is not written to: copy a confirmed policy\nthere. As soon as the file says something else than now, and is loaded, the file has the last word."
    )]
    Apply {
        /// The policy file; `-` reads standard input
        policy: PathBuf,
        /// How long it may stay unconfirmed, 1 s to 1 day
        #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
        confirm_within: Duration,
    },
    /// Keep the policy that is on trial
    #[command(after_help = "Example:\n  usher confirm")]
    Confirm,
    /// Take the policy that is on trial back at once
    #[command(after_help = "Example:\n  usher revert")]
    Revert,
    /// Transactions on elements
    #[command(
        subcommand,
        after_help = "Examples:\n  usher push list --state failed\n  usher push show 0193..."
    )]
    Push(PushCommand),
    /// Stop every decision at once; what was set still ends in time
    #[command(after_help = "Example:\n  usher stop && usher status")]
    Stop,
    /// Decide again after a stop
    #[command(after_help = "Example:\n  usher resume")]
    Resume,
    /// Consent to messages, as a person gave or withdrew it (a relayed SMS STOP)
    #[command(
        subcommand,
        after_help = "Examples:\n  usher consent withdraw msisdn:491700000001\n  usher consent give line-7"
    )]
    Consent(ConsentCommand),
    /// A person complained: no message for as long as policy.backoff.complaint says
    #[command(after_help = "Example:\n  usher complaint line-7")]
    Complaint {
        /// The subscriber's id, or a key as `msisdn:491700000001`
        subscriber: String,
    },
    /// Certificates for agents' uplinks, where you have no authority of your own; needs no orchestrator
    #[command(
        subcommand,
        after_help = "Examples:\n  usher pki init --dir pki --server usher.example.net --agent gw-1\n  usher pki agent gw-2 --dir pki"
    )]
    Pki(PkiCommand),
    /// Print shell completion
    #[command(after_help = "Example:\n  usher completion bash > /etc/bash_completion.d/usher")]
    Completion {
        /// For which shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// A listing and what to narrow it to.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// What to list
    #[arg(value_enum, value_name = "KIND")]
    pub kind: Listable,
    /// Only of this subscriber
    #[arg(long, short, value_name = "ID")]
    pub subscriber: Option<String>,
    /// Only on this agent (sessions)
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Go on where the listing before ended
    #[arg(long, value_name = "NEXT")]
    pub after: Option<String>,
}

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Listable {
    /// Customer lines
    #[value(alias = "subscriber")]
    Subscribers,
    /// Open sessions
    #[value(alias = "session")]
    Sessions,
    /// Settings as last desired
    #[value(alias = "setting")]
    Settings,
    /// Agents on gateways
    #[value(alias = "agent")]
    Agents,
    /// What accepts settings
    #[value(alias = "element")]
    Elements,
    /// Bytes and packets by class
    Usage,
    /// Decisions, newest first
    #[value(alias = "decision")]
    Decisions,
    /// Messages, newest first
    #[value(alias = "message")]
    Messages,
}

impl Listable {
    /// Below `/v1/`.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Subscribers => "subscribers",
            Self::Sessions => "sessions",
            Self::Settings => "settings",
            Self::Agents => "agents",
            Self::Elements => "elements",
            Self::Usage => "usage",
            Self::Decisions => "decisions",
            Self::Messages => "messages",
        }
    }
}

/// What can be described.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Describable {
    /// A customer line
    Subscriber,
    /// An agent
    Agent,
    /// An element, as `gateway:NAME` or `netconf:NAME`
    Element,
    /// A push
    Push,
    /// A decision
    Decision,
}

/// Transactions on elements.
#[derive(Debug, Subcommand)]
pub enum PushCommand {
    /// The newest, first
    #[command(after_help = "Example:\n  usher push list --subscriber line-7")]
    List {
        /// Only of this subscriber
        #[arg(long, short, value_name = "ID")]
        subscriber: Option<String>,
        /// Only in this state
        #[arg(long, value_name = "STATE", value_parser = ["pending", "running", "confirming", "done", "failed", "needs_repair", "superseded"])]
        state: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// One, with each element's steps and changes
    #[command(after_help = "Example:\n  usher push show 01930f3c-0000-7000-8000-000000000000 -o yaml")]
    Show {
        /// Its id
        id: String,
    },
}

/// Consent to messages.
#[derive(Debug, Subcommand)]
pub enum ConsentCommand {
    /// STOP: nothing further is sent from this moment on, what waits is not sent either
    #[command(after_help = "Example:\n  usher consent withdraw msisdn:491700000001")]
    Withdraw {
        /// The subscriber's id, or a key as `msisdn:491700000001`
        subscriber: String,
    },
    /// Messages may be sent again, where the profile says so too
    #[command(after_help = "Example:\n  usher consent give line-7")]
    Give {
        /// The subscriber's id, or a key as `msisdn:491700000001`
        subscriber: String,
    },
}

/// Certificates.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make an authority, the orchestrator's certificate and, with --agent, agents' certificates
    #[command(
        after_help = "Example:\n  usher pki init --dir pki --server usher.example.net --server 192.0.2.1 --agent gw-1"
    )]
    Init {
        /// Where to put them; made where it is missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Host name or address agents reach the orchestrator by; this machine's own unless given
        #[arg(long, alias = "server-name", value_name = "HOST")]
        server: Vec<String>,
        /// An agent's name
        #[arg(long, value_name = "NAME")]
        agent: Vec<String>,
    },
    /// Make the certificate of a further agent
    #[command(after_help = "Example:\n  usher pki agent gw-2 --dir pki")]
    Agent {
        /// The agent's name
        name: String,
        /// Where the authority is
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

/// A shell to complete in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}
