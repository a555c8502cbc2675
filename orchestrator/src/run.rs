//! Wiring: what is read and checked before anything is bound, what is started in which order, how it ends.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use rustix::fs::FlockOperation;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::ServerTlsConfig;
use usher_models::units::Micros;

use crate::advice::{self, Outbox, page};
use crate::agents::{Links, Service};
use crate::api::{self, ApiState, TcpDoor};
use crate::config::Config;
use crate::days;
use crate::elements::{Elements, Executor};
use crate::error::FileError;
use crate::identity::Directory;
use crate::inputs::{Bells, Book, EngineTask, Inbox, Queues};
use crate::ledger::Ledger;
use crate::messenger::Messenger;
use crate::metrics::{self, Metrics, Shown, count};
use crate::panel::Panel;
use crate::partners::{self, Partners};
use crate::policy::{ActionKind, Policy};

/// Asks of the tap page and of the API that may wait for the engine task, each.
const ASKS_MAX: usize = 64;
/// How long servers may take to end after everything else has.
const DRAIN: Duration = Duration::from_secs(5);

/// Everything the operator wrote, read and checked.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Policy and profiles.
    pub book: Arc<Book>,
    /// Our end of the uplinks' TLS.
    pub tls: ServerTlsConfig,
}

/// Reads and checks the configuration and what it names. Binds nothing, changes nothing.
pub fn load(path: &Path) -> miette::Result<Loaded> {
    let config = Config::load(path)?;
    let book = load_book(&config)?;
    if config.advice.is_none()
        && let Some((action, _)) =
            book.policy.actions().iter().find(|(_, action)| matches!(action.kind, ActionKind::Say { .. }))
    {
        let message = format!(
            "action `{action}` of the policy says something, but there is no section `advice`: expected \
             `advice: {{public_url: ..., listen: ..., outbox: ...}}`"
        );
        return Err(FileError::whole(path, message).into());
    }
    let tls = Service::tls(&config.agents.tls).map_err(|error| FileError::whole(path, error.to_string()))?;
    Ok(Loaded { config, book, tls })
}

fn load_book(config: &Config) -> miette::Result<Arc<Book>> {
    let (name, text) = read(&config.profiles)?;
    let directory = Directory::parse(&name, &text)?;
    let (name, text) = read(&config.policy)?;
    let policy = Policy::parse(&name, &text)?;
    policy.check(directory.plans())?;
    Ok(Arc::new(Book { policy, directory: Arc::new(directory) }))
}

fn read(path: &Path) -> Result<(String, String), FileError> {
    let text = fs::read_to_string(path)
        .map_err(|error| FileError::whole(path, format!("cannot be read: {error}")))?;
    Ok((path.display().to_string(), text))
}

/// Lists the recorded days, or copies the newest, up to this moment, to `output`; says what it did.
pub fn record(config: &Config, output: Option<&Path>) -> anyhow::Result<String> {
    let Some(record) = &config.record else {
        return Err(anyhow!("no day is recorded: give the configuration a section `record: {{dir: DIR}}`"));
    };
    let Some(output) = output else {
        let days = days::listed(&record.dir).with_context(|| record.dir.display().to_string())?;
        let told = days.iter().map(|day| {
            let written = day.written.strftime("%Y-%m-%d %H:%M:%SZ");
            format!("{}  {} bytes, last written {written}\n", day.path.display(), day.bytes)
        });
        return Ok(told.collect());
    };
    let unfinished = output.with_extension("unfinished");
    let mut file =
        File::create(&unfinished).with_context(|| format!("cannot write {}", unfinished.display()))?;
    let copied = days::export(&record.dir, &config.state_dir.join("ledger.sqlite"), &mut file);
    let done = copied.map_err(anyhow::Error::from).and_then(|inputs| {
        let none = "no day is recorded yet: the first begins within a minute of the start";
        let inputs = inputs.ok_or_else(|| anyhow!(none))?;
        file.sync_all()?;
        fs::rename(&unfinished, output)?;
        Ok(inputs)
    });
    let inputs = done.inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
    Ok(format!("{}: {inputs} inputs\n", output.display()))
}

/// Runs the daemon until a signal ends it, or something it cannot do without fails.
pub async fn run(loaded: Loaded) -> anyhow::Result<()> {
    let Loaded { config, book, tls } = loaded;
    // From here on no signal ends the process by itself.
    let mut signals = Signals::listen()?;
    let _lock = own_state_dir(&config.state_dir)?;
    let mut registry = metrics::registry();
    let metrics = Metrics::register(&mut registry);
    let advice_metrics = advice::Metrics::register(&mut registry);
    let api_metrics = api::Metrics::register(&mut registry);

    let asked = Partners::new(&config.partners)?;
    // All that can be refused is refused before the first agent or person is answered.
    let listener = TcpListener::bind(config.agents.listen)
        .await
        .with_context(|| format!("agents.listen: cannot listen on {}", config.agents.listen))?;
    let doors = api::bind(&config.api.socket, remote(&config)).await.context("api")?;
    let metrics_door = match &config.metrics {
        Some(metrics) => Some(TcpDoor::bind(metrics.listen).await.context("metrics.listen")?),
        None => None,
    };
    let advice = match &config.advice {
        Some(advice) => Some(Advice::open(advice, &config.state_dir, advice_metrics.clone()).await?),
        None => None,
    };
    let ledger = Ledger::open(&config.state_dir.join("ledger.sqlite"))?;
    let links = Links::new(config.allowed_agents(), metrics.clone());
    let elements = Elements::new(&config.elements, Path::new(""), Arc::new(links.clone()))?;
    let executor =
        Executor::new(Arc::new(elements), ledger.clone(), config.elements.pushes.clone(), metrics.clone());

    let (partners, partner_asks) = mpsc::channel(partners::WAITING_MAX);
    let bells = Bells { pushes: executor.wake(), partners: Some(partners), ..Bells::default() };
    let (in_force, book_in_force) = watch::channel(book.clone());
    let record = config.record.clone();
    let bells_of_task = bells.clone();
    let (counted, accepted) = (metrics.clone(), config.elements.accepted());
    let task =
        EngineTask::restore(book, in_force, ledger.clone(), counted, bells_of_task, accepted, record).await?;
    let (inbox, requests) = Inbox::new();
    let executor = executor.telling(inbox.clone());
    let (advice_asks, advice_queue) = mpsc::channel(ASKS_MAX);
    let (api_asks, api_queue) = mpsc::channel(ASKS_MAX);
    let queues = Queues { requests, advice: advice_queue, api: api_queue };

    let (stop, stopped) = watch::channel(false);
    let (stop_pushes, pushes_stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let engine_stopped = stopped.clone();
    tasks.spawn(async move { Box::pin(task.run(queues, engine_stopped)).await.context("engine") });
    let pushes = tokio::spawn(executor.run(until(pushes_stopped)));
    tasks.spawn(asked.run(partner_asks, inbox.clone(), metrics.clone(), stopped.clone()));
    let service = Service {
        inbox: inbox.clone(),
        links: links.clone(),
        ledger: ledger.clone(),
        metrics: metrics.clone(),
        stopped: stopped.clone(),
    };
    tasks.spawn(async move { Ok(service.serve(listener, tls).await?) });
    let panel = Panel { started: Micros::now(), config: config.clone(), links, book: book_in_force };
    let state =
        ApiState { ledger: ledger.clone(), asks: api_asks, live: Arc::new(panel), metrics: api_metrics };
    let api = api::serve(doors, state, until(stopped.clone()));
    tasks.spawn(async move {
        api.await;
        Ok(())
    });
    if let Some(Advice { door, outbox, links }) = advice {
        let state = page::PageState { links: links.clone(), asks: advice_asks, metrics: advice_metrics };
        let served = door.serve_until(page::router(state), until(stopped.clone()));
        tasks.spawn(async move {
            served.await;
            Ok(())
        });
        let messenger =
            Messenger { ledger, outbox, links, metrics: metrics.clone(), news: bells.messages.clone() };
        let stopped = stopped.clone();
        tasks.spawn(async move { messenger.run(stopped).await.context("messages") });
    }
    if let Some(door) = metrics_door {
        let served = door.serve_until(metrics_router(Shown::new(registry)), until(stopped.clone()));
        tasks.spawn(async move {
            served.await;
            Ok(())
        });
    }

    tell_systemd(&[NotifyState::Ready]);
    tracing::info!(agents = %config.agents.listen, policy = %config.policy.display(), "ready");
    let ended = attend(&config, &inbox, &metrics, &mut tasks, &mut signals).await;

    tell_systemd(&[NotifyState::Stopping]);
    // Pushes under way need the uplinks to come to their end.
    stop_pushes.send_replace(true);
    pushes.await.context("pushes")?;
    stop.send_replace(true);
    let drained = tokio::time::timeout(DRAIN, async {
        while let Some(task) = tasks.join_next().await {
            task??;
        }
        anyhow::Ok(())
    });
    let Ok(drained) = drained.await else {
        tracing::warn!("connections still open were cut");
        return ended;
    };
    ended.and(drained)
}

/// Waits for the end: a signal, or a task that should not have ended. Meanwhile: reloads, and signs of life.
async fn attend(
    config: &Config,
    inbox: &Inbox,
    metrics: &Metrics,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let mut watchdog_micros = 0;
    let watched = sd_notify::watchdog_enabled(false, &mut watchdog_micros);
    let mut alive = tokio::time::interval(if watched {
        Duration::from_micros(watchdog_micros / 2).max(Duration::from_millis(100))
    } else {
        Duration::from_hours(1)
    });
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => reload(config, inbox, metrics).await,
            // A sign of life of the engine task, not of this one.
            _ = alive.tick(), if watched => if inbox.ping().await.is_ok() {
                tell_systemd(&[NotifyState::Watchdog]);
            },
            Some(ended) = tasks.join_next() => {
                ended??;
                return Err(anyhow!("a part of the daemon ended early"));
            }
        }
    }
    tracing::info!("stopping");
    Ok(())
}

/// What an operator or systemd tells a running daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// Reads policy and profiles again. A mistake in either changes nothing.
async fn reload(config: &Config, inbox: &Inbox, metrics: &Metrics) {
    let config = config.clone();
    let loaded = tokio::task::spawn_blocking(move || load_book(&config)).await;
    let result = match loaded {
        Ok(Ok(book)) => {
            let revision = book.policy.revision().to_owned();
            match inbox.book(book).await {
                Ok(Ok(())) => Ok(revision),
                Ok(Err(mistakes)) => Err(mistakes.to_string()),
                Err(refusal) => Err(refusal.to_string()),
            }
        }
        Ok(Err(mistakes)) => Err(mistakes.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(policy) => {
            count(&metrics.reloads, "loaded");
            tracing::info!(policy, "policy and profiles loaded");
        }
        Err(mistakes) => {
            count(&metrics.reloads, "refused");
            tracing::error!("policy and profiles stay as they were: {mistakes}");
        }
    }
}

/// The tap page's and the messages' side.
struct Advice {
    door: TcpDoor,
    outbox: Arc<Outbox>,
    links: Arc<advice::Links>,
}

impl Advice {
    async fn open(
        config: &crate::config::AdviceConfig,
        state_dir: &Path,
        metrics: advice::Metrics,
    ) -> anyhow::Result<Self> {
        let door = TcpDoor::bind(config.listen).await.context("advice.listen")?;
        let outbox = Outbox::open(&config.outbox, metrics).context("advice.outbox")?;
        let links = advice::Links::open_or_create(state_dir, &config.public_url.value)?;
        Ok(Self { door, outbox: Arc::new(outbox), links: Arc::new(links) })
    }
}

fn remote(config: &Config) -> Option<api::Remote<'_>> {
    let remote = config.api.remote.as_ref()?;
    Some(api::Remote {
        address: remote.listen,
        certificate: &remote.tls.certificate,
        key: &remote.tls.key,
        token_file: &remote.token_file,
    })
}

/// Makes the state directory where it is missing, and makes sure that no other process works in it.
fn own_state_dir(dir: &Path) -> anyhow::Result<File> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).with_context(|| format!("state_dir: cannot make {}", dir.display()))?;
    let path: PathBuf = dir.join("lock");
    let lock = File::create(&path).with_context(|| format!("state_dir: cannot write {}", path.display()))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!(
            "state_dir: another usher-orchestrator works in {}: stop it, or give this one another",
            dir.display()
        )
    })?;
    Ok(lock)
}

fn metrics_router(shown: Shown) -> Router {
    let text = async move || match shown.text() {
        Ok(text) => {
            Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
        }
        Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    };
    Router::new().route("/metrics", get(text))
}

/// Resolves once `stopped` is true, or nobody can make it so any more.
async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Where there is no systemd nobody is told.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
