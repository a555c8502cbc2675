//! The operator's CLI `usher`: asks the API and prints the answer.
//!
//! Owns the command line, its exit codes and how answers look. Refuses to know more than the API says; only `lint`,
//! `pki` and `completion` work by themselves, without an orchestrator.

mod args;
mod check;
mod client;
mod describe;
mod error;
mod listing;
mod output;
mod replay;
mod uplift;

use std::path::Path;
use std::time::Duration;

use clap::CommandFactory as _;

pub use self::args::Cli;
use self::args::{
    Command, ConsentCommand, Describable, Format, GetArgs, Listable, PkiCommand, PushCommand, Shell,
};
use self::client::Client;
pub use self::error::CliError;
use crate::api::model::{ApplyRequest, Explanation, OnTrial, Page, PolicyStanding, Switched, Told};
use crate::pki;

/// Does what was typed.
pub async fn run(cli: Cli) -> Result<(), CliError> {
    let format = cli.global.output;
    match &cli.command {
        Command::Lint { policy, profiles, strict } => {
            return check::lint(format, policy, profiles.as_deref(), *strict);
        }
        Command::Pki(command) => return certificates(command),
        Command::Completion { shell } => return completion(*shell),
        Command::Replay { day, policy, names } => {
            return replay::replayed(format, day, policy.as_deref(), *names);
        }
        _ => {}
    }
    let client = Client::new(&cli.global)?;
    match cli.command {
        Command::Status => output::answer(format, &client.get(&["status"], &[]).await?, describe::status),
        Command::Get(get) => list(&client, format, get).await,
        Command::Describe { kind, id } => describe(&client, format, kind, &id).await,
        Command::Explain { subscriber, at, day, limit } => {
            let query = [("at", at.map(|at| at.to_string())), ("limit", Some(limit.to_string()))];
            let body = client.get(&["explain", &subscriber], &query).await?;
            let mut explanation: Explanation = replay::parsed(&body)?;
            if let Some(at) = at {
                replay::look_back(&client, at, day, &mut explanation).await?;
            }
            match format {
                Format::Table => output::print(&describe::explanation(&explanation)),
                Format::Json | Format::Yaml => output::structured(format, &explanation),
            }
        }
        Command::Push(PushCommand::List { subscriber, state, limit }) => {
            let query = [("subscriber", subscriber), ("state", state), ("limit", Some(limit.to_string()))];
            page(format, &client.get(&["pushes"], &query).await?, listing::pushes)
        }
        Command::Push(PushCommand::Show { id }) => describe(&client, format, Describable::Push, &id).await,
        Command::Plan { policy, day, names } => {
            replay::planned(&client, format, policy.as_deref(), day, names).await
        }
        Command::Uplift { since, policy, credit } => {
            let query = [
                ("since", since.map(|since| since.to_string())),
                ("policy", policy),
                ("credit_s", Some(credit.as_secs().to_string())),
            ];
            output::answer(format, &client.get(&["uplift"], &query).await?, uplift::report)
        }
        Command::Apply { policy, confirm_within } => apply(&client, format, &policy, confirm_within).await,
        Command::Confirm => {
            let body = client.post(&["policy", "confirm"]).await?;
            output::answer(format, &body, |standing: &PolicyStanding| {
                format!("Confirmed: policy {} stays in force.", standing.revision)
            })
        }
        Command::Revert => {
            let body = client.post(&["policy", "revert"]).await?;
            output::answer(format, &body, |standing: &PolicyStanding| {
                format!("Taken back: policy {} is in force again.", standing.revision)
            })
        }
        Command::Stop => switch(&client, format, "stop").await,
        Command::Resume => switch(&client, format, "resume").await,
        Command::Consent(ConsentCommand::Withdraw { subscriber }) => {
            let path = ["subscribers", &subscriber, "consent", "withdraw"];
            told(&client, format, &path, "consent to messages is withdrawn: nothing further is sent").await
        }
        Command::Consent(ConsentCommand::Give { subscriber }) => {
            let path = ["subscribers", &subscriber, "consent", "give"];
            told(&client, format, &path, "messages may be sent again, where the profile says so too").await
        }
        Command::Complaint { subscriber } => {
            let path = ["subscribers", &subscriber, "complaint"];
            told(&client, format, &path, "the complaint is taken down: no message for a while").await
        }
        Command::Lint { .. } | Command::Pki(_) | Command::Completion { .. } | Command::Replay { .. } => {
            Ok(())
        }
    }
}

async fn apply(
    client: &Client,
    format: Format,
    policy: &Path,
    confirm_within: Duration,
) -> Result<(), CliError> {
    let (name, text) = check::read(policy)?;
    let request = ApplyRequest { name, policy: text, confirm_within_s: confirm_within.as_secs() };
    let body = client.send("policy/apply", &request).await?;
    output::answer(format, &body, |on_trial: &OnTrial| {
        format!(
            "Policy {} is in force. Unless you `usher confirm`, the one before comes back at {}.",
            on_trial.revision, on_trial.confirm_by
        )
    })
}

async fn list(client: &Client, format: Format, get: GetArgs) -> Result<(), CliError> {
    let query = [
        ("subscriber", get.subscriber),
        ("agent", get.agent),
        ("limit", Some(get.limit.to_string())),
        ("after", get.after),
    ];
    let body = client.get(&[get.kind.path()], &query).await?;
    match get.kind {
        Listable::Subscribers => page(format, &body, listing::subscribers),
        Listable::Sessions => page(format, &body, listing::sessions),
        Listable::Settings => page(format, &body, listing::settings),
        Listable::Agents => page(format, &body, listing::agents),
        Listable::Elements => page(format, &body, listing::elements),
        Listable::Usage => page(format, &body, listing::usage),
        Listable::Decisions => page(format, &body, listing::decisions),
        Listable::Messages => page(format, &body, listing::messages),
    }
}

fn page<T: serde::de::DeserializeOwned>(
    format: Format,
    body: &[u8],
    table: impl FnOnce(&[T]) -> String,
) -> Result<(), CliError> {
    output::answer(format, body, |page: &Page<T>| {
        let mut text = table(&page.items);
        if let Some(next) = &page.next {
            text.push_str("There is more: --after '");
            text.push_str(next);
            text.push_str("'\n");
        }
        text
    })
}

async fn describe(client: &Client, format: Format, kind: Describable, id: &str) -> Result<(), CliError> {
    let get = async |path: &str| client.get(&[path, id], &[]).await;
    match kind {
        Describable::Subscriber => output::answer(format, &get("subscribers").await?, describe::subscriber),
        Describable::Agent => output::answer(format, &get("agents").await?, describe::agent),
        Describable::Element => output::answer(format, &get("elements").await?, describe::element),
        Describable::Push => output::answer(format, &get("pushes").await?, describe::push),
        Describable::Decision => output::answer(format, &get("decisions").await?, describe::decision),
    }
}

async fn switch(client: &Client, format: Format, verb: &str) -> Result<(), CliError> {
    output::answer(format, &client.post(&[verb]).await?, |switched: &Switched| {
        match (switched.stopped, switched.changed) {
            (true, true) => "Stopped: no decision is made any more. What was set still ends in time.",
            (true, false) => "It was stopped already.",
            (false, true) => "Resumed: decisions are made again.",
            (false, false) => "It was not stopped.",
        }
        .to_owned()
    })
}

async fn told(client: &Client, format: Format, path: &[&str], what: &str) -> Result<(), CliError> {
    let body = client.post(path).await?;
    output::answer(format, &body, |told: &Told| format!("{}: {what}.", output::plain(&told.subscriber.0)))
}

fn certificates(command: &PkiCommand) -> Result<(), CliError> {
    let refused = |error: pki::PkiError| match error {
        pki::PkiError::AgentName(_) | pki::PkiError::NoServerName => CliError::Usage(error.to_string()),
        pki::PkiError::Io { .. } => CliError::Failed(error.to_string()),
        _ => CliError::Refused(error.to_string()),
    };
    match command {
        PkiCommand::Init { dir, server, agent } => {
            let server = if server.is_empty() { own_names() } else { server.clone() };
            let made = pki::init(dir, &server, agent).map_err(refused)?;
            output::print(&format!("made for {}\n{}", server.join(", "), made.instructions()))
        }
        PkiCommand::Agent { name, dir } => {
            let pair = pki::agent(dir, name).map_err(refused)?;
            output::print(&pki::agent_instructions(name, &pair, &dir.join("ca.pem")))
        }
    }
}

/// What this machine is reached by, as far as it knows.
fn own_names() -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if let Ok(name) = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")) {
        let name = name.trim();
        if !name.is_empty() && name != "localhost" && name != "(none)" {
            names.insert(0, name.to_owned());
        }
    }
    names
}

fn completion(shell: Shell) -> Result<(), CliError> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "usher", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
