//! Nodes -> values. Each reader reports what it expected and gives `None`; reading goes on, so that one look at the
//! messages shows every mistake.

use super::{Issue, Kind, Node, Span};

/// A mapping read key by key; what nobody asked for is reported by [`Fields::finish`].
pub struct Fields<'n> {
    span: Span,
    what: String,
    entries: &'n [(String, Span, Node)],
    asked: Vec<&'static str>,
}

impl<'n> Fields<'n> {
    /// Of a mapping; anything else is reported. `what` completes "expected ...".
    pub fn of(node: &'n Node, what: impl Into<String>, issues: &mut Vec<Issue>) -> Option<Self> {
        let what = what.into();
        if let Kind::Map(entries) = &node.kind {
            return Some(Self { span: node.span, what, entries, asked: Vec::new() });
        }
        let found = node.describe();
        issues.push(Issue::new(node.span, format!("expected {what} as a mapping, found {found}")));
        None
    }

    /// The value of a key that may be missing.
    pub fn take(&mut self, key: &'static str) -> Option<&'n Node> {
        self.asked.push(key);
        self.entries.iter().find(|(name, ..)| name == key).map(|(_, _, node)| node)
    }

    /// The value of a key that must be there; reported where it is not.
    pub fn require(&mut self, key: &'static str, issues: &mut Vec<Issue>) -> Option<&'n Node> {
        let found = self.take(key);
        if found.is_none() {
            issues.push(Issue::new(self.span, format!("{} lacks `{key}`", self.what)));
        }
        found
    }

    /// Where the mapping starts.
    pub fn span(&self) -> Span {
        self.span
    }

    /// What stands under keys nobody asked for: for mappings that carry names of the operator's own.
    pub fn others(&self) -> impl Iterator<Item = (&'n str, Span, &'n Node)> {
        let asked = self.asked.clone();
        self.entries
            .iter()
            .filter(move |(name, ..)| !asked.contains(&name.as_str()))
            .map(|(name, span, node)| (name.as_str(), *span, node))
    }

    /// Reports every key nobody asked for, with the nearest right one.
    pub fn finish(self, issues: &mut Vec<Issue>) {
        for (name, span, _) in self.others() {
            let mut known = self.asked.clone();
            known.sort_unstable();
            let issue = Issue::new(span, format!("unknown key `{name}` in {}", self.what));
            issues.push(issue.with_help(match nearest(name, known.iter().copied()) {
                Some(right) => format!("did you mean `{right}`?"),
                None => format!("expected one of {}", known.join(", ")),
            }));
        }
    }
}

/// The elements of a list.
pub fn items<'n>(node: &'n Node, what: &str, issues: &mut Vec<Issue>) -> Option<&'n [Node]> {
    if let Kind::List(items) = &node.kind {
        return Some(items);
    }
    issues.push(Issue::new(node.span, format!("expected {what} as a list, found {}", node.describe())));
    None
}

/// A scalar as text, whatever it looks like.
pub fn text<'n>(node: &'n Node, what: &str, issues: &mut Vec<Issue>) -> Option<&'n str> {
    match &node.kind {
        Kind::Scalar { text, .. } if !text.is_empty() => Some(text),
        _ => {
            issues.push(Issue::new(node.span, format!("expected {what}, found {}", node.describe())));
            None
        }
    }
}

/// One of a fixed set of words.
pub fn word<T: Copy>(node: &Node, what: &str, words: &[(&str, T)], issues: &mut Vec<Issue>) -> Option<T> {
    let found = text(node, what, issues)?;
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == found) {
        return Some(*value);
    }
    let expected: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let message = format!("`{found}` is no {what}: expected one of {}", expected.join(", "));
    let issue = Issue::new(node.span, message);
    issues.push(match nearest(found, expected.iter().copied()) {
        Some(right) => issue.with_help(format!("did you mean `{right}`?")),
        None => issue,
    });
    None
}

/// A number that is finite.
pub fn number(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<f64> {
    let found = text(node, what, issues)?;
    match found.parse::<f64>() {
        Ok(value) if value.is_finite() => Some(value),
        _ => {
            issues.push(Issue::new(node.span, format!("expected {what} as a number, found `{found}`")));
            None
        }
    }
}

/// `true` or `false`, nothing else.
pub fn boolean(node: &Node, what: &str, issues: &mut Vec<Issue>) -> Option<bool> {
    match text(node, what, issues)? {
        "true" => Some(true),
        "false" => Some(false),
        found => {
            let message = format!("expected {what} as `true` or `false`, found `{found}`");
            issues.push(Issue::new(node.span, message));
            None
        }
    }
}

/// The candidate a writer most likely meant: at most a third of the letters away.
pub fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let limit = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to change, add, drop or swap to get from one word to the other (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    // Names are short; a long one is nobody's typo, and the table stays small.
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_a_small_step_away() {
        let known = ["facts", "moments", "actions"];
        assert_eq!(nearest("moment", known), Some("moments"));
        assert_eq!(nearest("fatcs", known), Some("facts"));
        assert_eq!(nearest("zebra", known), None);
        assert_eq!(nearest("", known), None);
    }
}
