//! `usher uplift`: what messages brought, as a table.

use std::fmt::Write as _;

use super::output::{Field, Sheet, plain, table, when, when_any};
use crate::uplift::report::{Brought, Done, Figure, LeftOut, Line, Report};

pub(super) fn report(report: &Report) -> String {
    let cut_short = if report.cut_short { " (there are older ones: narrow it with --since)" } else { "" };
    let revisions: Vec<String> =
        report.policies.iter().map(|(policy, count)| format!("{policy} ({count})")).collect();
    let mut sheet = Sheet::default();
    sheet
        .line("Decisions", format!("{}{cut_short}", report.policies.values().sum::<u64>()))
        .line("From", when_any(report.from))
        .line("Until", when(report.until))
        .line("Policies", revisions.join(", "))
        .line("Left out", left_out(&report.left_out))
        .line("Credit", credit(report.credit_s));
    let mut text = sheet.end();
    text.push('\n');
    text.push_str(&if report.actions.is_empty() {
        "no message was sent, or was to be, in that time\n".to_owned()
    } else {
        messages(report)
    });
    if !report.settings.is_empty() {
        text.push_str("\n\n");
        text.push_str(&settings(&report.settings));
    }
    text
}

fn settings(settings: &[Done]) -> String {
    let rows = settings.iter().map(|line| {
        vec![
            Field::text(&line.action),
            Field::number(line.done),
            Field::number(line.held_out),
            Field::number(line.withheld),
            Field::number(format!("{:.0}", line.judged)),
            line.helped.map_or_else(
                || Field::text("too few"),
                |share| Field::number(format!("{:.1} %", 100.0 * share)),
            ),
        ]
    });
    table(&["SETTING", "DONE", "HELD OUT", "WITHHELD", "JUDGED", "HELPED"], rows.collect(), "")
}

fn messages(report: &Report) -> String {
    let mut rows: Vec<Vec<Field>> = report.actions.iter().map(row).collect();
    let of_all = &report.all;
    let mut all = counts("all", "", of_all);
    all.extend([share(of_all.acceptance), Field::text(""), Field::text(""), amount(of_all.gain)]);
    rows.push(all);
    let header = [
        "ACTION",
        "STYLE",
        "SENT",
        "YES",
        "NO",
        "IGNORED",
        "OPEN",
        "HELD OUT",
        "UNSAID",
        "ACCEPTED",
        "IPW",
        "SNIPS",
        "GAIN A MESSAGE",
    ];
    let mut text = table(&header, rows, "");
    let lines = report.actions.iter().map(|line| (name(line), &line.brought));
    for (name, brought) in lines.chain([("all".to_owned(), of_all)]) {
        if let Some(why) = &brought.too_few {
            let _ = write!(text, "\nToo few samples of {}: {}.", plain(&name), plain(why));
        }
    }
    text
}

fn name(line: &Line) -> String {
    let style = line.style.as_ref().map_or_else(String::new, |style| format!(" ({style})"));
    format!("{}{style}", line.action)
}

fn left_out(left_out: &LeftOut) -> String {
    let counts = [
        (left_out.other_policy, "of other policies"),
        (left_out.not_live, "not to be carried out"),
        (left_out.regulated, "that the law asked for"),
        (left_out.without_probability, "without a logged probability"),
    ];
    let said = counts.iter().filter(|(count, _)| *count > 0);
    said.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}

fn credit(seconds: u64) -> String {
    let time = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
    format!("a tap within {time:#} of its decision")
}

fn counts(action: &str, style: &str, brought: &Brought) -> Vec<Field> {
    let mut row = vec![Field::text(action), Field::text(style)];
    row.extend(
        [
            brought.sent,
            brought.accepted,
            brought.declined,
            brought.ignored,
            brought.open,
            brought.held_out,
            brought.unsaid,
        ]
        .map(Field::number),
    );
    row
}

fn row(line: &Line) -> Vec<Field> {
    let mut row = counts(&line.action, line.style.as_deref().unwrap_or_default(), &line.brought);
    row.extend([
        share(line.brought.acceptance),
        share(line.always.map(|always| always.acceptance_ipw)),
        share(line.always.map(|always| always.acceptance_snips)),
        amount(line.brought.gain),
    ]);
    row
}

/// `12.0 % (9.1 to 14.9)`
fn share(figure: Option<Figure>) -> Field {
    let Some(Figure { mean, low, high }) = figure else { return Field::text("too few") };
    Field::text(format!("{:.1} % ({:.1} to {:.1})", 100.0 * mean, 100.0 * low, 100.0 * high))
}

/// `0.84 (0.61 to 1.07)`
fn amount(figure: Option<Figure>) -> Field {
    let Some(Figure { mean, low, high }) = figure else { return Field::text("too few") };
    Field::text(format!("{mean:.2} ({low:.2} to {high:.2})"))
}
