//! Which policy is in force, and until when: the file's, or one that was applied over it.
//!
//! ```text
//! file --apply--> on trial --confirm--> applied       the file changes -> the file
//!   ^                |  time is up, revert: what was in force before
//! ```
//!
//! The newest word of the operator counts: a policy applied stays in force over restarts and reloads as long as the file says
//! what it said then. Each change is one transaction with the engine's.

use std::sync::Arc;
use std::time::Duration;

use usher_models::units::Micros;

use super::Book;
use super::task::{EngineTask, TaskError};
use crate::api::Refused;
use crate::identity::Directory;
use crate::ledger::{AppliedPolicy, PolicyChange};
use crate::policy::Policy;

/// A policy on trial.
#[derive(Debug)]
pub(super) struct Trial {
    /// It goes then.
    confirm_by: Micros,
    /// What comes back.
    before: Policy,
}

/// What is in force beside what the file says.
#[derive(Debug)]
pub(super) struct Standing {
    /// Revision of the file's policy, as last read.
    file: String,
    pub(super) trial: Option<Trial>,
}

impl Standing {
    /// What the file's `book` and the ledger's policies come to at `now`: the book in force, and what is to be noted.
    pub(super) fn resolve(
        book: Arc<Book>,
        (confirmed, on_trial): (Option<AppliedPolicy>, Option<AppliedPolicy>),
        now: Micros,
    ) -> (Self, Arc<Book>, Option<PolicyChange>) {
        let file = book.policy.revision().to_owned();
        let mut standing = Self { file: file.clone(), trial: None };
        let older = |applied: &AppliedPolicy| applied.in_place_of != file;
        if confirmed.as_ref().is_some_and(older) || on_trial.as_ref().is_some_and(older) {
            tracing::info!("the policy file was changed since a policy was applied over it: it is in force");
            return (standing, book, Some(PolicyChange::Forget));
        }
        let fits = |applied: AppliedPolicy| {
            let parsed = Policy::parse(&applied.name, &applied.text);
            let checked = parsed.and_then(|policy| policy.check(book.directory.plans()).map(|()| policy));
            checked
                .inspect_err(|why| tracing::error!("the policy applied is not in force any more: {why}"))
                .ok()
        };
        let of = |policy: Policy| Arc::new(Book { policy, directory: book.directory.clone() });
        let before = match confirmed {
            Some(confirmed) => match fits(confirmed) {
                Some(policy) => of(policy),
                None => return (standing, book.clone(), Some(PolicyChange::Forget)),
            },
            None => book.clone(),
        };
        let Some(on_trial) = on_trial else { return (standing, before, None) };
        let confirm_by = on_trial.confirm_by.filter(|confirm_by| *confirm_by > now);
        if let Some(confirm_by) = confirm_by
            && let Some(policy) = fits(on_trial)
        {
            standing.trial = Some(Trial { confirm_by, before: before.policy.clone() });
            return (standing, of(policy), None);
        }
        tracing::warn!("the policy on trial was not confirmed in time: the one before is in force");
        (standing, before, Some(PolicyChange::Revert))
    }

    /// When the policy on trial goes.
    pub(super) fn ends(&self) -> Option<Micros> {
        self.trial.as_ref().map(|trial| trial.confirm_by)
    }
}

impl EngineTask {
    /// Takes what was read anew from the files, or changes nothing.
    pub(super) async fn load(&mut self, read: Arc<Book>) -> Result<(), TaskError> {
        let file = read.policy.revision().to_owned();
        let directory = read.directory.clone();
        if file == self.standing.file {
            if let Some(trial) = &self.standing.trial {
                trial.before.check(directory.plans())?;
            }
            return self.put_in_force(self.book.policy.clone(), directory, None).await;
        }
        read.policy.check(directory.plans())?;
        self.put_in_force(read.policy.clone(), directory, Some(PolicyChange::Forget)).await?;
        self.standing = Standing { file, trial: None };
        Ok(())
    }

    /// Puts a policy in force until `within` is over, unless it is confirmed; gives when that is.
    pub(super) async fn apply_policy(
        &mut self,
        policy: Policy,
        within: Duration,
    ) -> Result<Result<Micros, Refused>, TaskError> {
        if policy.revision() == self.book.policy.revision() {
            return Ok(Err(Refused::InForce));
        }
        if let Err(mistakes) = policy.check(self.book.directory.plans()) {
            return Ok(Err(Refused::Mistakes(mistakes)));
        }
        let now = self.advance();
        let confirm_by = now.after(within);
        let applied = AppliedPolicy {
            name: policy.file_name().to_owned(),
            text: policy.text().to_owned(),
            in_place_of: self.standing.file.clone(),
            at: now,
            confirm_by: Some(confirm_by),
        };
        let before = match self.standing.trial.take() {
            Some(trial) => trial.before,
            None => self.book.policy.clone(),
        };
        tracing::warn!(policy = policy.revision(), confirm_within = ?within, "policy applied, on trial");
        let change = Some(PolicyChange::Try(applied));
        self.put_in_force(policy, self.book.directory.clone(), change).await?;
        self.standing.trial = Some(Trial { confirm_by, before });
        Ok(Ok(confirm_by))
    }

    /// The policy on trial stays.
    pub(super) async fn confirm_policy(&mut self) -> Result<Result<(), Refused>, TaskError> {
        if self.standing.trial.is_none() {
            return Ok(Err(Refused::NotOnTrial));
        }
        self.advance();
        let mut record = self.record();
        record.policy = Some(PolicyChange::Confirm);
        self.commit(record).await?;
        self.standing.trial = None;
        tracing::info!(policy = self.book.policy.revision(), "policy confirmed");
        Ok(Ok(()))
    }

    /// The policy on trial goes, and what was in force before comes back.
    pub(super) async fn revert_policy(&mut self) -> Result<Result<(), Refused>, TaskError> {
        let Some(trial) = &self.standing.trial else { return Ok(Err(Refused::NotOnTrial)) };
        let before = trial.before.clone();
        tracing::warn!(policy = before.revision(), "the policy before is in force again");
        self.put_in_force(before, self.book.directory.clone(), Some(PolicyChange::Revert)).await?;
        self.standing.trial = None;
        Ok(Ok(()))
    }

    /// The one way in which a policy or profiles come into force: all of it durable in one transaction, or nothing.
    async fn put_in_force(
        &mut self,
        policy: Policy,
        directory: Arc<Directory>,
        change: Option<PolicyChange>,
    ) -> Result<(), TaskError> {
        self.advance();
        policy.check(directory.plans())?;
        let mut record = self.record();
        record.policy = change;
        if policy.revision() == self.book.policy.revision() {
            for input in directory.inputs_since(&self.book.directory) {
                self.step(&mut record, input);
            }
        } else {
            self.go_under(&policy, &directory, &mut record).await?;
            for input in self.engine().inputs_to(&directory) {
                self.step(&mut record, input);
            }
        }
        self.book = Arc::new(Book { policy, directory });
        self.reassign(&mut record).await?;
        self.commit(record).await?;
        self.tell_in_force();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::tests::{POLICY, PROFILES, book};

    fn s(seconds: i64) -> Micros {
        Micros::new(seconds * 1_000_000)
    }

    fn applied(floor: &str, confirm_by: Option<Micros>) -> AppliedPolicy {
        AppliedPolicy {
            name: "other.yaml".into(),
            text: POLICY.replace("floor: 0.4", &format!("floor: {floor}")),
            in_place_of: book(PROFILES).policy.revision().to_owned(),
            at: s(0),
            confirm_by,
        }
    }

    fn revision(applied: &AppliedPolicy) -> String {
        Policy::parse("p", &applied.text).unwrap().revision().to_owned()
    }

    #[test]
    fn a_trial_lasts_to_its_end_and_not_a_moment_longer() {
        let (confirmed, trial) = (applied("0.5", None), applied("0.6", Some(s(100))));
        let stored = (Some(confirmed.clone()), Some(trial.clone()));
        let (standing, during, change) = Standing::resolve(book(PROFILES), stored.clone(), s(99));
        assert_eq!((during.policy.revision(), change), (revision(&trial).as_str(), None));
        assert_eq!(standing.ends(), Some(s(100)));
        let (standing, after, change) = Standing::resolve(book(PROFILES), stored, s(100));
        assert_eq!(
            (after.policy.revision(), change),
            (revision(&confirmed).as_str(), Some(PolicyChange::Revert))
        );
        assert_eq!(standing.ends(), None);
    }

    #[test]
    fn the_file_has_the_last_word_where_it_was_changed_since() {
        let mut confirmed = applied("0.5", None);
        confirmed.in_place_of = "another".into();
        let (_, in_force, change) = Standing::resolve(book(PROFILES), (Some(confirmed), None), s(1));
        assert_eq!(in_force.policy.revision(), book(PROFILES).policy.revision());
        assert_eq!(change, Some(PolicyChange::Forget));
    }

    #[test]
    fn one_that_this_build_does_not_read_gives_way_to_the_file() {
        let mut confirmed = applied("0.5", None);
        confirmed.text = "version: 9".into();
        let (_, in_force, change) = Standing::resolve(book(PROFILES), (Some(confirmed), None), s(1));
        assert_eq!(in_force.policy.revision(), book(PROFILES).policy.revision());
        assert_eq!(change, Some(PolicyChange::Forget));
    }
}
