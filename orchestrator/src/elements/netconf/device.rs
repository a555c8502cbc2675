//! The requests of a push to one device, by name.

use std::fmt::Write as _;
use std::time::Duration;

use super::error::NetconfError;
use super::session::Reply;
use super::tree::{BASE, Node, to_xml};
use super::worker::{Tag, Worker};
use crate::elements::{NetconfConfig, PushId};

/// Capabilities the transaction stands on (RFC 6241 sections 8.3 and 8.4).
const CAPABILITIES: [&str; 2] = [
    "urn:ietf:params:netconf:capability:candidate:1.0",
    "urn:ietf:params:netconf:capability:confirmed-commit:1.1",
];

/// A datastore of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Datastore {
    Running,
    Candidate,
}

impl Datastore {
    const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Candidate => "candidate",
        }
    }
}

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    worker: Worker,
}

impl Device {
    /// Starts its thread; connects with the first request. `modules` must be announced besides what a push needs.
    pub(super) fn start(config: NetconfConfig, modules: &[String]) -> std::io::Result<Self> {
        let requires =
            CAPABILITIES.iter().map(|&uri| uri.to_owned()).chain(modules.iter().cloned()).collect();
        Ok(Self { worker: Worker::start(config, requires)? })
    }

    /// How often it was connected to.
    pub(super) fn connects(&self) -> u64 {
        self.worker.connects()
    }

    /// The session there is, or a new one.
    pub(super) async fn open(&self) -> Result<OpenSession, NetconfError> {
        Ok(OpenSession {
            tag: self.worker.open().await?,
            worker: self.worker.clone(),
            ended: false,
            locked: false,
        })
    }
}

/// Requests of one piece of work on one session. Dropped with locks held, it ends the session, and the locks with it.
#[derive(Debug)]
pub(super) struct OpenSession {
    tag: Tag,
    worker: Worker,
    ended: bool,
    locked: bool,
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        if self.locked && !self.ended {
            self.worker.close(self.tag);
        }
    }
}

impl OpenSession {
    /// get-config with a subtree filter.
    pub(super) async fn get(
        &mut self,
        source: Datastore,
        filter: &[Node],
    ) -> Result<Vec<Node>, NetconfError> {
        let request = format!(
            r#"<get-config><source><{}/></source><filter type="subtree">{}</filter></get-config>"#,
            source.name(),
            to_xml(filter)
        );
        self.ask("get-config", request).await
    }

    /// Locks both datastores, or neither.
    pub(super) async fn lock(&mut self) -> Result<(), NetconfError> {
        self.ask("lock of running", target("lock", Datastore::Running)).await?;
        self.locked = true;
        if let Err(error) = self.ask("lock of candidate", target("lock", Datastore::Candidate)).await {
            let _ = self.ask("unlock", target("unlock", Datastore::Running)).await;
            self.locked = false;
            return Err(error);
        }
        Ok(())
    }

    /// Lets both go. What is left in the candidate goes with its lock on a server that follows the standard, but not on
    /// all, hence the explicit discard.
    pub(super) async fn unlock(&mut self) {
        if !self.locked {
            return;
        }
        let discarded = self.discard().await;
        let candidate = self.ask("unlock of candidate", target("unlock", Datastore::Candidate)).await;
        let running = self.ask("unlock of running", target("unlock", Datastore::Running)).await;
        if discarded.and(candidate).and(running).is_err() {
            self.worker.close(self.tag);
            self.ended = true;
        }
        self.locked = false;
    }

    /// edit-config of the candidate: tested first, all or nothing.
    pub(super) async fn edit(&mut self, config: &str) -> Result<(), NetconfError> {
        let request = format!(
            "<edit-config><target><candidate/></target><default-operation>merge</default-operation>\
             <test-option>test-then-set</test-option><error-option>rollback-on-error</error-option>\
             <config xmlns:nc=\"{BASE}\">{config}</config></edit-config>"
        );
        self.ask("edit-config", request).await.map(drop)
    }

    /// Forgets the edits of the candidate.
    pub(super) async fn discard(&mut self) -> Result<(), NetconfError> {
        self.ask("discard-changes", "<discard-changes/>".to_owned()).await.map(drop)
    }

    /// Puts the candidate in force until `within` is over, to be confirmed by the push's id from whatever session.
    pub(super) async fn commit_provisionally(
        &mut self,
        push: &PushId,
        within: Duration,
    ) -> Result<(), NetconfError> {
        let mut request = String::from("<commit><confirmed/>");
        let _ = write!(request, "<confirm-timeout>{}</confirm-timeout>", within.as_secs().max(1));
        let _ = write!(request, "<persist>{}</persist></commit>", quick_xml::escape::escape(push.0.as_str()));
        self.ask("confirmed commit", request).await.map(drop)
    }

    /// Keeps what was committed provisionally.
    pub(super) async fn confirm(&mut self, push: &PushId) -> Result<(), NetconfError> {
        let id = quick_xml::escape::escape(push.0.as_str());
        self.ask("confirming commit", format!("<commit><persist-id>{id}</persist-id></commit>"))
            .await
            .map(drop)
    }

    /// Takes back what was committed provisionally.
    pub(super) async fn cancel(&mut self, push: &PushId) -> Result<(), NetconfError> {
        let id = quick_xml::escape::escape(push.0.as_str());
        self.ask("cancel-commit", format!("<cancel-commit><persist-id>{id}</persist-id></cancel-commit>"))
            .await
            .map(drop)
    }

    async fn ask(&mut self, operation: &'static str, request: String) -> Result<Vec<Node>, NetconfError> {
        let reply = self.worker.call(self.tag, request).await;
        match reply {
            Ok(Reply::Done(data)) => Ok(data),
            Ok(Reply::Refused(errors)) => Err(NetconfError::Refused { operation, errors }),
            Err(error) => {
                self.ended = true;
                Err(error)
            }
        }
    }
}

fn target(operation: &str, datastore: Datastore) -> String {
    format!("<{operation}><target><{}/></target></{operation}>", datastore.name())
}
