//! What the API shows of the running daemon itself: from memory, at once.

use tokio::sync::watch;
use usher_models::units::{Micros, SubscriberId};

use std::path::PathBuf;
use std::sync::Arc;

use crate::agents::Links;
use crate::api::{About, Live, LiveAgent, LiveElement, LiveUplink};
use crate::config::Config;
use crate::engine::io::Mode;
use crate::identity::Profile;
use crate::inputs::Book;

/// What is known without asking anybody.
#[derive(Debug)]
pub struct Panel {
    /// When the daemon started.
    pub started: Micros,
    /// What it was told.
    pub config: Config,
    /// Who is connected.
    pub links: Links,
    /// Policy and profiles in force.
    pub book: watch::Receiver<Arc<Book>>,
}

impl Panel {
    fn book(&self) -> Arc<Book> {
        self.book.borrow().clone()
    }
}

impl Live for Panel {
    fn about(&self) -> About {
        let book = self.book();
        let mode = match book.policy.guard().mode {
            Mode::Stop => "stop",
            Mode::Plan => "plan",
            Mode::Live => "live",
            Mode::Canary => "canary",
        };
        About { started: self.started, policy: book.policy.revision().to_owned(), mode: mode.to_owned() }
    }

    fn agents(&self) -> Vec<LiveAgent> {
        let mut connected = self.links.connected();
        let mut uplink = |name: &String| {
            let at = connected.iter().position(|connected| connected.agent == *name)?;
            let connected = connected.swap_remove(at);
            Some(LiveUplink {
                since: connected.since,
                version: connected.version,
                dry_run: connected.dry_run,
            })
        };
        self.links
            .allowed()
            .iter()
            .map(|name| LiveAgent { name: name.clone(), uplink: uplink(name) })
            .collect()
    }

    fn elements(&self) -> Vec<LiveElement> {
        let elements = &self.config.elements;
        let connected = self.links.connected();
        let gateways = self.links.allowed().iter().map(|name| LiveElement {
            name: format!("gateway:{name}"),
            address: None,
            settings: elements.gateway.settings.as_ref().map(|names| names.iter().cloned().collect()),
            dry_run: elements.gateway.dry_run
                || connected.iter().any(|connected| connected.agent == *name && connected.dry_run),
        });
        let devices = elements.netconf.iter().map(|device| LiveElement {
            name: format!("netconf:{}", device.name),
            address: Some(device.address.clone()),
            settings: Some(device.settings.keys().cloned().collect()),
            dry_run: device.dry_run,
        });
        gateways.chain(devices).collect()
    }

    fn policy_file(&self) -> PathBuf {
        self.config.policy.clone()
    }

    fn days(&self) -> Option<PathBuf> {
        self.config.record.as_ref().map(|record| record.dir.clone())
    }

    fn has_advice(&self) -> bool {
        self.config.advice.is_some()
    }

    fn subscribers(&self) -> usize {
        self.book().directory.profiles().len()
    }

    fn profile(&self, id: &SubscriberId) -> Option<Profile> {
        self.book().directory.profile(id).cloned()
    }

    fn of_key(&self, key: &str) -> Option<SubscriberId> {
        self.book().directory.resolve([key]).cloned()
    }

    fn profiles_after(&self, after: Option<&SubscriberId>, limit: usize) -> Vec<Profile> {
        self.book().directory.profiles_after(after).take(limit).cloned().collect()
    }
}
