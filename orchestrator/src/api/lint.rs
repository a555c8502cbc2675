//! Checks a policy as the daemon would, without running it. The CLI does the same without a daemon.

use super::model::{Lint, LintRequest, Mistake};
use crate::document::Issues;
use crate::identity::Directory;
use crate::policy::Policy;

/// Every mistake of a policy and of the profiles it is to work with.
pub(crate) fn lint(request: &LintRequest) -> Lint {
    let name = request.name.as_deref().unwrap_or("policy");
    match examine(name, &request.policy, request.profiles.as_deref().map(|text| ("profiles", text))) {
        Ok(policy) => Lint { ok: true, revision: Some(policy.revision().to_owned()), mistakes: Vec::new() },
        Err(issues) => {
            let mistakes = issues.iter().flat_map(mistakes).collect();
            Lint { ok: false, revision: None, mistakes }
        }
    }
}

/// The policy, if the daemon would run it with these profiles; otherwise what is wrong, file by file.
pub(crate) fn examine(
    policy_name: &str,
    policy_text: &str,
    profiles: Option<(&str, &str)>,
) -> Result<Policy, Vec<Issues>> {
    let mut wrong = Vec::new();
    let policy = Policy::parse(policy_name, policy_text).map_err(|issues| wrong.push(issues)).ok();
    let directory = profiles
        .and_then(|(name, text)| Directory::parse(name, text).map_err(|issues| wrong.push(issues)).ok());
    match policy {
        Some(policy) if wrong.is_empty() => {
            if let Some(directory) = &directory {
                policy.check(directory.plans()).map_err(|issues| vec![issues])?;
            } else if !policy.unsupported().is_empty() {
                return Err(vec![Issues::new(policy_name, policy_text, policy.unsupported().to_vec())]);
            }
            Ok(policy)
        }
        _ => Err(wrong),
    }
}

/// The mistakes of a file as the API tells them.
pub(crate) fn mistakes(wrong: &Issues) -> Vec<Mistake> {
    wrong
        .issues
        .iter()
        .map(|issue| Mistake {
            file: wrong.file.clone(),
            line: u64::try_from(issue.span.line).unwrap_or(u64::MAX),
            column: u64::try_from(issue.span.column).unwrap_or(u64::MAX),
            message: issue.message.clone(),
            help: issue.help.clone(),
        })
        .collect()
}
