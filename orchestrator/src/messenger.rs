//! Takes messages from the ledger to their channel, once each.
//!
//! Owns the order (oldest first), the patience with a channel that refuses, and what is too late to be said. The channel
//! is idempotent by decision id, so a kill between sending and noting it sends nothing twice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use usher_models::units::Micros;

use crate::advice::{Links, Message, Outbox, OutboxError};
use crate::ledger::{Ledger, LedgerError, MessageRow, MessageState};
use crate::metrics::Metrics;

/// Messages taken from the ledger at a time.
const AT_ONCE: u32 = 64;
/// Pause after a channel refused; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What it works with.
#[derive(Debug, Clone)]
pub struct Messenger {
    /// Where messages wait.
    pub ledger: Ledger,
    /// Where they go.
    pub outbox: Arc<Outbox>,
    /// Signs their links.
    pub links: Arc<Links>,
    /// What is counted.
    pub metrics: Metrics,
    /// Rung when there is a new one.
    pub news: Arc<Notify>,
}

impl Messenger {
    /// Works until `stopped` turns true; what is pending then is sent after the next start.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) -> Result<(), LedgerError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let refused = self.send_pending().await?;
            let wait = async {
                if refused {
                    tokio::time::sleep(pause).await;
                } else {
                    self.news.notified().await;
                }
            };
            tokio::select! {
                () = wait => {}
                () = async { drop(stopped.wait_for(|stopped| *stopped).await) } => return Ok(()),
            }
            pause = if refused { (pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        }
    }

    /// Sends what is pending. True: the channel refused one, which stays pending with all after it.
    async fn send_pending(&self) -> Result<bool, LedgerError> {
        loop {
            let pending = self.ledger.with(|ledger| ledger.pending_messages(AT_ONCE)).await?;
            self.metrics.messages_waiting.set(u64::try_from(pending.len()).unwrap_or(u64::MAX));
            if pending.is_empty() {
                return Ok(false);
            }
            for row in pending {
                if !self.send(row).await? {
                    return Ok(true);
                }
            }
        }
    }

    async fn send(&self, row: MessageRow) -> Result<bool, LedgerError> {
        let message = Message::of(&row.say, &self.links);
        let decision = row.say.decision;
        let now = Micros::now();
        if message.expires() <= now {
            tracing::warn!(%decision, "message not sent: its offer ended while it waited");
            self.ledger
                .with(move |ledger| ledger.message_failed(&decision, "the offer ended while it waited"))
                .await?;
            return Ok(true);
        }
        // Consent may have been withdrawn since it was read.
        let (asked, id) = (self.ledger.clone(), decision.clone());
        let still = asked.with(move |ledger| ledger.message(&id)).await?;
        if still.is_none_or(|row| row.state != MessageState::Pending) {
            tracing::info!(%decision, "message not sent: consent was withdrawn");
            return Ok(true);
        }
        let (outbox, ledger) = (self.outbox.clone(), self.ledger.clone());
        let deliver = move || {
            ledger.durable_step();
            outbox.deliver(&message)
        };
        let delivered = tokio::task::spawn_blocking(deliver).await;
        match delivered.map_err(|_| LedgerError::Stopped)? {
            Ok(_) => {
                tracing::info!(%decision, action = row.say.action, "message sent");
                self.ledger.with(move |ledger| ledger.message_sent(&decision, Micros::now())).await?;
                Ok(true)
            }
            Err(error @ OutboxError::Name(_)) => {
                tracing::error!(%decision, %error, "message cannot be sent");
                let why = error.to_string();
                self.ledger.with(move |ledger| ledger.message_failed(&decision, &why)).await?;
                Ok(true)
            }
            Err(error) => {
                tracing::warn!(%decision, %error, "message not sent yet");
                Ok(false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use usher_models::units::SubscriberId;

    use super::*;
    use crate::advice;
    use crate::engine::io::{DecisionId, Effect, Say};
    use crate::ledger::InputRecord;
    use crate::metrics::registry;

    fn say(id: &str, expires: Micros) -> InputRecord {
        let say = Say {
            decision: DecisionId(id.into()),
            subscriber: SubscriberId("line-b".into()),
            action: "roam_pass".into(),
            text: "You're in Testland.".into(),
            tap: BTreeMap::new(),
            tap_seconds: 86_400,
            regulated: false,
            expires,
        };
        InputRecord { at: Micros::now(), effects: vec![Effect::Say(say)], ..InputRecord::default() }
    }

    fn messenger(dir: &std::path::Path) -> Messenger {
        let outbox = Outbox::open(&dir.join("outbox"), advice::Metrics::default()).unwrap().with_room_for(1);
        Messenger {
            ledger: Ledger::open(&dir.join("ledger.sqlite")).unwrap(),
            outbox: Arc::new(outbox),
            links: Arc::new(Links::with_key([1; 32], "https://usher.example")),
            metrics: Metrics::register(&mut registry()),
            news: Arc::default(),
        }
    }

    #[tokio::test]
    async fn what_was_pending_at_the_kill_is_sent_once_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let messenger = messenger(dir.path());
        let soon = Micros::now().after(Duration::from_mins(1));
        messenger.ledger.apply(&say("d1", soon)).unwrap();
        // Delivered, but killed before that was noted.
        let row = messenger.ledger.pending_messages(1).unwrap().remove(0);
        messenger.outbox.deliver(&Message::of(&row.say, &messenger.links)).unwrap();
        let first = std::fs::read(dir.path().join("outbox/d1.json")).unwrap();
        assert!(!messenger.send_pending().await.unwrap());
        assert_eq!(std::fs::read(dir.path().join("outbox/d1.json")).unwrap(), first);
        assert!(messenger.ledger.pending_messages(1).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_channel_that_refuses_keeps_messages_pending_until_it_takes_them() {
        let dir = tempfile::tempdir().unwrap();
        let messenger = messenger(dir.path());
        let soon = Micros::now().after(Duration::from_mins(1));
        messenger.ledger.apply(&say("d1", soon)).unwrap();
        messenger.ledger.apply(&say("d2", soon)).unwrap();
        assert!(messenger.send_pending().await.unwrap(), "there is room for one");
        assert_eq!(messenger.ledger.pending_messages(9).unwrap().len(), 1);
        std::fs::remove_file(dir.path().join("outbox/d1.json")).unwrap();
        assert!(!messenger.send_pending().await.unwrap());
        assert!(dir.path().join("outbox/d2.json").exists());
    }

    #[tokio::test]
    async fn what_waits_when_consent_is_withdrawn_is_never_sent() {
        let dir = tempfile::tempdir().unwrap();
        let messenger = messenger(dir.path());
        let soon = Micros::now().after(Duration::from_mins(1));
        messenger.ledger.apply(&say("d1", soon)).unwrap();
        // Read before, but not yet delivered.
        let row = messenger.ledger.pending_messages(1).unwrap().remove(0);
        let effects = vec![Effect::Withdraw(SubscriberId("line-b".into()))];
        messenger.ledger.apply(&InputRecord { effects, ..InputRecord::default() }).unwrap();
        assert!(messenger.send(row).await.unwrap());
        assert!(!dir.path().join("outbox/d1.json").exists());
        assert!(messenger.ledger.pending_messages(1).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_the_law_asks_for_is_sent_whatever_was_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let messenger = messenger(dir.path());
        let mut record = say("d1", Micros::now().after(Duration::from_mins(1)));
        for effect in &mut record.effects {
            if let Effect::Say(say) = effect {
                say.regulated = true;
            }
        }
        messenger.ledger.apply(&record).unwrap();
        let effects = vec![Effect::Withdraw(SubscriberId("line-b".into()))];
        messenger.ledger.apply(&InputRecord { effects, ..InputRecord::default() }).unwrap();
        assert!(messenger.send_pending().await.is_ok());
        assert!(dir.path().join("outbox/d1.json").exists());
    }

    #[tokio::test]
    async fn an_offer_that_ended_is_never_sent() {
        let dir = tempfile::tempdir().unwrap();
        let messenger = messenger(dir.path());
        messenger.ledger.apply(&say("d1", Micros::new(1))).unwrap();
        assert!(!messenger.send_pending().await.unwrap());
        assert!(!dir.path().join("outbox/d1.json").exists());
        let message = messenger.ledger.message(&DecisionId("d1".into())).unwrap().unwrap();
        assert!(matches!(message.state, MessageState::Failed(_)));
    }
}
