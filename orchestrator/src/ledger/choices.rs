//! Decisions as the uplift report reads them: many, newest first, a page at a time, so that other readers get between.

use rusqlite::{Row, params};
use usher_models::units::Micros;

use super::read::decoded;
use super::{Ledger, LedgerError};
use crate::uplift::report::{Choice, Said};

/// Decisions on a page.
const PAGE: usize = 4_096;

impl Ledger {
    /// Hands `take` the decisions from `since` on, newest first, at most `limit` of them. True: there are older ones since then.
    pub fn choices(
        &self,
        since: Micros,
        limit: usize,
        mut take: impl FnMut(&Choice),
    ) -> Result<bool, LedgerError> {
        let mut before = (i64::MAX, String::new());
        let mut left = limit;
        loop {
            // One more than is wanted tells whether there are older ones.
            let wanted = PAGE.min(left + 1);
            let page = self.page_of_choices(since, &before, wanted)?;
            let is_last = page.len() < wanted;
            for (id, trace, message) in page {
                if left == 0 {
                    return Ok(true);
                }
                left -= 1;
                let mut choice: Choice = decoded(&trace, || format!("decision {id}"))?;
                choice.message = message;
                take(&choice);
                before = (choice.at.get(), id);
            }
            if is_last {
                return Ok(false);
            }
        }
    }

    fn page_of_choices(
        &self,
        since: Micros,
        (at, id): &(i64, String),
        limit: usize,
    ) -> Result<Vec<(String, String, Option<Said>)>, LedgerError> {
        let reader = self.reader();
        let mut query = reader.prepare_cached(
            "SELECT id, trace, messages.decision IS NOT NULL, sent_us IS NOT NULL, taps.at_us, declines.at_us FROM decisions
             LEFT JOIN messages ON messages.decision = id LEFT JOIN taps ON taps.decision = id
             LEFT JOIN declines ON declines.decision = id
             WHERE decisions.at_us >= ?1 AND (decisions.at_us, id) < (?2, ?3)
             ORDER BY decisions.at_us DESC, id DESC LIMIT ?4",
        )?;
        let rows = query
            .query_map(params![since.get(), at, id, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                Ok((row.get(0)?, row.get(1)?, if row.get(2)? { Some(said(row)?) } else { None }))
            })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn said(row: &Row<'_>) -> rusqlite::Result<Said> {
    let time = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.map(Micros::new));
    Ok(Said { sent: row.get(3)?, tapped: time(4)?, declined: time(5)? })
}
