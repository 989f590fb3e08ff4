//! Formats numbers, ages and tables.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytesize::ByteSize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::task::Timestamp;
use crate::text::plain;

/// Widest untrusted text in a table, in columns.
const MAX_CELL: usize = 48;

pub(in crate::commands) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A heading that begins with `>` makes its column right-aligned.
    pub(in crate::commands) fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|heading| heading.starts_with('>')).collect();
        let row = headings.iter().map(|heading| heading.trim_start_matches('>').to_owned());
        Self { rows: vec![row.collect()], right }
    }

    /// The cells are escaped here too, because that changes their width.
    pub(in crate::commands) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    pub(in crate::commands) fn render(&self) -> Vec<String> {
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row| row.get::<usize>(column));
            cells.map(|cell| cell.width()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.right.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let space = " ".repeat(width.saturating_sub(cell.width()));
                let (before, after) = if *right { (space.as_str(), "") } else { ("", &*space) };
                line = format!("{line}{before}{cell}{after}  ");
            }
            line.trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// Escapes untrusted text, such as keys and replica errors.
pub(super) fn clean(text: &str) -> String {
    plain(text).into_owned()
}

/// As [`clean`], shortened in the middle to [`MAX_CELL`] columns.
pub(super) fn cell(text: &str) -> String {
    let text = clean(text);
    if text.width() <= MAX_CELL {
        return text;
    }
    let half = (MAX_CELL - 1) / 2;
    let fits = |chars: &mut dyn Iterator<Item = char>| {
        let mut columns = 0;
        let mut taken = Vec::new();
        for c in chars {
            columns += c.width().unwrap_or(0);
            if columns > half {
                break;
            }
            taken.push(c);
        }
        taken
    };
    let front: String = fits(&mut text.chars()).into_iter().collect();
    let back: String = fits(&mut text.chars().rev()).into_iter().rev().collect();
    format!("{front}…{back}")
}

/// The two largest units: `3m12s`, `2d4h`; tenths below ten seconds.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let two = |large: u64, unit, small: u64, sub| match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{sub}"),
    };
    match seconds {
        0..10 if time.subsec_millis() < 50 => format!("{seconds}s"),
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

pub(super) fn seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or_else(|_| "-".to_owned(), span)
}

pub(super) fn latency(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(seconds) if seconds < 0.001 => format!("{:.0}us", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{:.1}ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.2}s"),
    }
}

pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        // Not "0.0", which differs from "0" for no visible reason.
        ..0.05 => "<0.1".to_owned(),
        ..9.95 => format!("{per_second:.1}"),
        _ => format!("{per_second:.0}"),
    }
}

pub(in crate::commands) fn bytes(bytes: u64) -> String {
    ByteSize::b(bytes).to_string()
}

/// `1 task`, `2 tasks`, `2 deliveries`, `2 keys`.
pub(in crate::commands) fn count(number: u64, of: &str) -> String {
    match of.strip_suffix('y').filter(|stem| !stem.ends_with('e')) {
        _ if number == 1 => format!("1 {of}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {of}s"),
    }
}

/// Time since a timestamp of the API; the timestamp itself if it cannot be parsed.
pub(super) fn age(moment: &str, now: Timestamp) -> String {
    match parse(moment) {
        Some(at) => span(now_as_time(now).duration_since(at).unwrap_or_default()),
        None => clean(moment),
    }
}

pub(super) fn until(moment: &str, now: Timestamp) -> String {
    match parse(moment) {
        Some(at) => span(at.duration_since(now_as_time(now)).unwrap_or_default()),
        None => clean(moment),
    }
}

/// When a replica with an open breaker is probed. The probe is the next due delivery or dead letter,
/// so there may be none for a long time.
pub(super) fn probe(moment: &str, now: Timestamp) -> String {
    match parse(moment) {
        Some(at) if at <= now_as_time(now) => "probed by the next due delivery".to_owned(),
        _ => format!("next probe in {}", until(moment, now)),
    }
}

fn parse(moment: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(moment).ok()
}

fn now_as_time(now: Timestamp) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(now.0)
}

/// One `name  value` line each, values aligned.
pub(super) fn facts(facts: &[(&str, String)]) -> Vec<String> {
    let width = facts.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    facts.iter().map(|(name, fact)| format!("{name:width$}  {fact}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_shows_its_two_largest_units() {
        let text = |seconds| span(Duration::from_millis(seconds));
        assert_eq!(text(0), "0s");
        assert_eq!(text(1_500), "1.5s");
        assert_eq!(text(12_900), "12s");
        assert_eq!(text(192_000), "3m12s");
        assert_eq!(text(180_000), "3m");
        assert_eq!(text(7_500_000), "2h5m");
        assert_eq!(text(187_200_000), "2d4h");
        assert_eq!(seconds(f64::NAN), "-");
        assert_eq!(latency(Some(0.0215)), "21.5ms");
    }

    #[test]
    fn an_age_ends_now_and_is_never_negative() {
        let now = Timestamp(100_000_000_000);
        assert_eq!(age("1970-01-01T00:00:40.000Z", now), "1m");
        assert_eq!(age("1970-01-01T00:02:00Z", now), "0s");
        assert_eq!(until("1970-01-01T00:02:00Z", now), "20s");
        assert_eq!(age("yesterday", now), "yesterday");
    }

    #[test]
    fn a_rate_is_0_only_if_nothing_happened() {
        let text = [0.0, 0.01, 0.05, 1.25, 9.94, 9.97, 250.4].map(rate);
        assert_eq!(text, ["0", "<0.1", "0.1", "1.2", "9.9", "10", "250"]);
    }

    #[test]
    fn untrusted_text_is_escaped_for_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(clean("x\u{202e}y\u{200b}"), "x\\u{202e}y\\u{200b}");
        assert_eq!(clean("clé/日本"), "clé/日本");
    }

    #[test]
    fn a_long_cell_is_shortened_in_the_middle() {
        let short = cell(&format!("begin{}end", "日".repeat(100)));
        assert!(short.starts_with("begin") && short.ends_with("end") && short.contains('…'));
        assert!(short.width() <= MAX_CELL, "{short}");
        assert_eq!(cell("short"), "short");
    }

    #[test]
    fn columns_are_aligned_by_display_width() {
        let mut table = Table::new(&["KEY", ">BYTES", "STATE"]);
        table.row(["日本".to_owned(), "7".to_owned(), String::new()]);
        table.row(["a".to_owned(), "1000000".to_owned(), "dead".to_owned()]);
        let lines = ["KEY     BYTES  STATE", "日本        7", "a     1000000  dead"];
        assert_eq!(table.render(), lines);
    }
}
