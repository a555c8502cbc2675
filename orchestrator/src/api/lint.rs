//! Checks a policy as the daemon would, without running it. The CLI does the same without a daemon.

use super::model::{Lint, LintRequest, Mistake, Severity};
use crate::document::Issues;
use crate::identity::Directory;
use crate::policy::Policy;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Examined {
    /// The policy, if the daemon would run it with these profiles.
    pub(crate) policy: Option<Policy>,
    /// What keeps it from that, file by file.
    pub(crate) errors: Vec<Issues>,
    /// What is most likely not meant.
    pub(crate) warnings: Vec<Issues>,
}

impl Examined {
    /// The policy's, where it can be run.
    pub(crate) fn revision(&self) -> Option<String> {
        self.policy.as_ref().map(|policy| policy.revision().to_owned())
    }

    /// As the API tells it.
    pub(crate) fn lint(&self) -> Lint {
        let told = |wrong: &[Issues], severity| -> Vec<Mistake> {
            wrong.iter().flat_map(|issues| mistakes(issues, severity)).collect()
        };
        let mut mistakes = told(&self.errors, Severity::Error);
        mistakes.extend(told(&self.warnings, Severity::Warning));
        Lint { ok: self.errors.is_empty(), revision: self.revision(), mistakes }
    }
}

/// Every mistake of a policy and of the profiles it is to work with.
pub(crate) fn lint(request: &LintRequest) -> Lint {
    let name = request.name.as_deref().unwrap_or("policy");
    examine(name, &request.policy, request.profiles.as_deref().map(|text| ("profiles", text))).lint()
}

/// Checks a policy, and the profiles if there are any.
pub(crate) fn examine(policy_name: &str, policy_text: &str, profiles: Option<(&str, &str)>) -> Examined {
    let mut found = Examined::default();
    let policy = Policy::parse(policy_name, policy_text).map_err(|issues| found.errors.push(issues)).ok();
    let directory = profiles.and_then(|(name, text)| {
        Directory::parse(name, text).map_err(|issues| found.errors.push(issues)).ok()
    });
    let Some(policy) = policy else { return found };
    let of_policy = |issues| Issues::new(policy_name, policy_text, issues);
    let plans = directory.as_ref().map(Directory::plans);
    if let Some(plans) = plans {
        found.errors.extend(policy.check(plans).err());
    } else {
        let issues = policy.breaches();
        found.errors.extend((!issues.is_empty()).then(|| of_policy(issues)));
    }
    let warnings = policy.warnings(plans);
    found.warnings.extend((!warnings.is_empty()).then(|| of_policy(warnings)));
    found.policy = found.errors.is_empty().then_some(policy);
    found
}

fn mistakes(wrong: &Issues, severity: Severity) -> impl Iterator<Item = Mistake> {
    wrong.issues.iter().map(move |issue| Mistake {
        file: wrong.file.clone(),
        severity,
        line: u64::try_from(issue.span.line).unwrap_or(u64::MAX),
        column: u64::try_from(issue.span.column).unwrap_or(u64::MAX),
        message: issue.message.clone(),
        help: issue.help.clone(),
    })
}
