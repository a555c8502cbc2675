//! From rows as they stand in the file to sessions: every value checked, no id twice, no address in two sessions.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::{MAX_KEYS, MAX_PREFIXES, MAX_SESSIONS, Overlap, Session, Sessions, SessionsError};
use crate::place::Place;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) text: String,
}

/// A session as the file has it.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) id: Placed,
    pub(super) keys: Vec<Placed>,
    pub(super) prefixes: Vec<Placed>,
    pub(super) plmn: Option<Placed>,
    pub(super) rat: Option<Placed>,
    pub(super) time_zone: Option<Placed>,
}

/// A prefix, whose it is (by row) and where it stands.
struct Claim {
    prefix: IpNet,
    row: usize,
    at: (u64, u64),
}

pub(super) fn sessions(
    rows: &[Row],
    file: &Arc<str>,
    home_plmns: &[String],
) -> Result<Sessions, SessionsError> {
    let check = Check { file, home_plmns };
    if let Some(row) = rows.get(MAX_SESSIONS) {
        return Err(check.wrong(&row.id, format!("more than {MAX_SESSIONS} sessions")));
    }
    let mut places: HashMap<&str, (u64, u64)> = HashMap::with_capacity(rows.len());
    let mut claims = Vec::with_capacity(rows.len());
    let mut by_id = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        let session = check.session(number, row, &mut claims)?;
        if let Some(first) = places.insert(&row.id.text, (row.id.line, row.id.column)) {
            return Err(SessionsError::DuplicateId {
                place: check.place((row.id.line, row.id.column)),
                first: check.place(first),
                id: session.id,
            });
        }
        by_id.insert(session.id.clone(), session);
    }
    if let Some((earlier, later)) = first_overlap(&mut claims) {
        return Err(SessionsError::Overlap(Box::new(Overlap {
            place: check.place(later.at),
            id: rows[later.row].id.text.clone(),
            prefix: later.prefix,
            other: check.place(earlier.at),
            other_id: rows[earlier.row].id.text.clone(),
            other_prefix: earlier.prefix,
        })));
    }
    Ok(Sessions { by_id })
}

/// Two prefixes of different sessions that share an address, the earlier in the file first.
///
/// Sorted by address, then by length, a prefix directly follows those that contain it: a stack of them is enough.
fn first_overlap(claims: &mut [Claim]) -> Option<(&Claim, &Claim)> {
    claims.sort_by_key(|claim| (claim.prefix.network(), claim.prefix.prefix_len(), claim.row));
    let mut around: Vec<&Claim> = Vec::new();
    for claim in &*claims {
        while around.last().is_some_and(|outer| !outer.prefix.contains(&claim.prefix)) {
            around.pop();
        }
        if let Some(outer) = around.iter().find(|outer| outer.row != claim.row) {
            return Some(if outer.row < claim.row { (outer, claim) } else { (claim, outer) });
        }
        around.push(claim);
    }
    None
}

struct Check<'a> {
    file: &'a Arc<str>,
    home_plmns: &'a [String],
}

impl Check<'_> {
    fn place(&self, (line, column): (u64, u64)) -> Place {
        Place { file: Arc::clone(self.file), line, column }
    }

    fn wrong(&self, at: &Placed, message: String) -> SessionsError {
        SessionsError::Wrong { place: self.place((at.line, at.column)), message }
    }

    fn session(&self, number: usize, row: &Row, claims: &mut Vec<Claim>) -> Result<Session, SessionsError> {
        let id = &row.id;
        if id.text.is_empty()
            || id.text.len() > 128
            || id.text.chars().any(|c| c.is_whitespace() || c.is_control())
        {
            let message =
                format!("`{}` is not a session id: expected up to 128 characters without spaces", id.text);
            return Err(self.wrong(id, message.escape_debug().to_string()));
        }
        let keys = self.keys(row)?;
        let mut prefixes: Vec<IpNet> = Vec::with_capacity(row.prefixes.len());
        for placed in &row.prefixes {
            let prefix = self.prefix(placed)?;
            if !prefixes.contains(&prefix) {
                prefixes.push(prefix);
                claims.push(Claim { prefix, row: number, at: (placed.line, placed.column) });
            }
        }
        if prefixes.is_empty() {
            return Err(self.wrong(id, format!("session `{}` has no prefix: expected at least one", id.text)));
        }
        if row.prefixes.len() > MAX_PREFIXES {
            let message = format!("session `{}` has more than {MAX_PREFIXES} prefixes", id.text);
            return Err(self.wrong(&row.prefixes[MAX_PREFIXES], message));
        }
        let plmn = row.plmn.as_ref().map(|placed| self.plmn(placed)).transpose()?;
        let roaming = plmn.as_ref().is_some_and(|plmn| !self.home_plmns.contains(plmn));
        let rat = row.rat.as_ref().map(|placed| self.word(placed, "a radio access")).transpose()?;
        let time_zone =
            row.time_zone.as_ref().map(|placed| self.word(placed, "an IANA time zone")).transpose()?;
        Ok(Session { id: id.text.clone(), keys, prefixes, plmn, roaming, rat, time_zone })
    }

    fn keys(&self, row: &Row) -> Result<Vec<String>, SessionsError> {
        if let Some(placed) = row.keys.get(MAX_KEYS) {
            let message = format!("session `{}` has more than {MAX_KEYS} keys", row.id.text);
            return Err(self.wrong(placed, message));
        }
        if row.keys.is_empty() {
            let message = format!(
                "session `{}` has no key: expected at least one, as in `imsi:001010000000001`",
                row.id.text
            );
            return Err(self.wrong(&row.id, message));
        }
        row.keys
            .iter()
            .map(|placed| match placed.text.split_once(':') {
                Some((kind, value))
                    if !value.is_empty()
                        && !kind.is_empty()
                        && placed.text.len() <= 256
                        && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                        && !value.chars().any(|c| c.is_whitespace() || c.is_control()) =>
                {
                    Ok(placed.text.clone())
                }
                _ => {
                    let text = placed.text.escape_debug();
                    let message =
                        format!("`{text}` is not a key: expected `kind:value`, as in `imsi:001010000000001`");
                    Err(self.wrong(placed, message))
                }
            })
            .collect()
    }

    fn prefix(&self, placed: &Placed) -> Result<IpNet, SessionsError> {
        let read =
            placed.text.parse::<IpNet>().ok().or_else(|| placed.text.parse::<IpAddr>().ok().map(IpNet::from));
        let Some(prefix) = read else {
            let text = placed.text.escape_debug();
            let message = format!(
                "`{text}` is not a prefix: expected an address or a CIDR prefix, as in `10.0.0.2/32` or `2001:db8:1::/64`"
            );
            return Err(self.wrong(placed, message));
        };
        if prefix.addr() != prefix.network() {
            let message = format!("`{prefix}` has bits set after its length: write `{}`", prefix.trunc());
            return Err(self.wrong(placed, message));
        }
        if let IpNet::V6(v6) = prefix
            && (v6.prefix_len() >= 96 && v6.addr().to_ipv4_mapped().is_some())
        {
            let message = format!("`{prefix}` is IPv4 mapped into IPv6: write the IPv4 prefix");
            return Err(self.wrong(placed, message));
        }
        // The probe's table of prefixes holds IPv4 addresses as mapped ones.
        if let IpNet::V6(v6) = prefix
            && v6.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped())
        {
            let message =
                format!("`{prefix}` is so wide that it takes IPv4 along: write `2000::/3` or narrower");
            return Err(self.wrong(placed, message));
        }
        Ok(prefix)
    }

    fn plmn(&self, placed: &Placed) -> Result<String, SessionsError> {
        let text = &placed.text;
        if !matches!(text.len(), 5 | 6) || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            let message = format!(
                "`{}` is not a PLMN: expected MCC and MNC, five or six digits in quotes, as in \"00101\"",
                text.escape_debug()
            );
            return Err(self.wrong(placed, message));
        }
        Ok(text.clone())
    }

    fn word(&self, placed: &Placed, what: &str) -> Result<String, SessionsError> {
        let text = &placed.text;
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+' | b'/' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(allowed) {
            let message =
                format!("`{}` is not {what}: expected letters, digits and any of _-+/.", text.escape_debug());
            return Err(self.wrong(placed, message));
        }
        Ok(text.clone())
    }
}
