//! Draws the screen.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Cell, Row, Sparkline, Table, TableState};

use super::model::{Model, Samples};
use crate::api::{Figures, ReplicaFigures};
use crate::commands::admin::text::{clean, rate, seconds};
use crate::task::ReplicaState;

/// Lines of a curve with its title. A low screen has no curves: the table matters more.
const CURVE_LINES: u16 = 6;

pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let curves = if frame.area().height < 16 { 0 } else { CURVE_LINES };
    let [head, totals, curve_area, table, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(curves),
        Constraint::Min(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(model), head);
    let Some(figures) = &model.figures else {
        let waiting = if model.lost.is_some() { "" } else { "waiting for the first figures …" };
        frame.render_widget(Line::from(waiting), totals);
        frame.render_widget(footing(model), foot);
        return;
    };
    let cluster = model.cluster.as_deref().map(|text| Line::from(clean(text)));
    frame.render_widget(Text::from_iter(std::iter::once(sums(figures)).chain(cluster)), totals);
    if curves > 0 {
        draw_curves(frame, curve_area, model, figures);
    }
    draw_table(frame, table, model);
    frame.render_widget(footing(model), foot);
}

fn heading(model: &Model) -> Line<'static> {
    let mut parts = vec![bold("replicator top"), Span::raw(format!("  {}", clean(&model.url)))];
    if let Some(figures) = &model.figures {
        let time = figures.at.get(11..19).unwrap_or_default();
        parts.push(Span::raw(format!("  {} UTC", clean(time))));
    }
    if model.polled {
        parts.push(Span::raw("  polled"));
    }
    if let Some(why) = &model.lost {
        parts.push(Span::raw("  "));
        parts.push(Span::styled(clean(why), Style::new().fg(Color::Red)));
    }
    Line::from(parts)
}

fn sums(figures: &Figures) -> Line<'static> {
    let each = [
        ("accepted ", format!("{}/s", rate(figures.accepted_per_second))),
        ("  delivered ", format!("{}/s", rate(figures.delivered_per_second))),
        ("  failed ", format!("{}/s", rate(figures.failed_per_second))),
        ("  queue ", figures.queue_tasks.to_string()),
        ("  retrying ", figures.retry_tasks.to_string()),
        ("  dead letters ", figures.dead_letters.to_string()),
    ];
    let parts = each.into_iter().flat_map(|(name, value)| [Span::raw(name), bold(value)]);
    Line::from(parts.collect::<Vec<_>>())
}

fn draw_curves(frame: &mut Frame<'_>, area: Rect, model: &Model, figures: &Figures) {
    let thirds = Layout::horizontal([Constraint::Fill(1); 3]).spacing(1).areas::<3>(area);
    let curves: [(String, &Samples, Color); 3] = [
        (
            format!("delivered {}/s", rate(figures.delivered_per_second)),
            &model.delivered,
            Color::Green,
        ),
        (format!("backlog {}", figures.backlog_tasks), &model.backlog, Color::Cyan),
        (format!("lag {}", seconds(figures.lag_seconds)), &model.lag_millis, Color::Yellow),
    ];
    for ((title, history, colour), area) in curves.into_iter().zip(thirds) {
        let samples = history.last(area.width.into());
        let top = samples.iter().max().copied().unwrap_or(0).max(1);
        let block = Block::new().title(bold(title));
        let curve = Sparkline::default().block(block).data(samples).max(top);
        frame.render_widget(curve.style(Style::new().fg(colour)), area);
    }
}

const STATE_WIDTH: u16 = 10;

/// Behind the state of a replica with limits.
const LIMITED: &str = ", limited";

fn state_width(model: &Model) -> u16 {
    let is_limited = model.replicas().iter().any(|line| !line.limits.is_none());
    if is_limited { STATE_WIDTH + 9 } else { STATE_WIDTH }
}

/// Columns reserved for the address before optional figures are shown.
const ADDRESS_WIDTH: usize = 40;

/// Backlog and lag are shown on any screen.
const MIN_FIGURES: usize = 2;

fn draw_table(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    // Heading, width, and priority on a narrow screen (1 is shown first).
    let headings = [
        ("BACKLOG", 7, 1),
        ("LAG", 7, 2),
        ("IN FLIGHT", 9, 6),
        ("RETRYING", 8, 7),
        ("DEAD", 7, 3),
        ("OUT/S", 6, 4),
        ("FAILED/S", 8, 5),
    ];
    let fitting = figures_that_fit(&headings, area.width, model);
    let headings = headings.map(|(heading, width, priority)| (heading, width, priority <= fitting));
    let shown = |(_, _, shown): &(&str, u16, bool)| *shown;
    let header = [Cell::from("REPLICA"), Cell::from("STATE")]
        .into_iter()
        .chain(headings.into_iter().filter(shown).map(|(heading, ..)| right(heading.to_owned())));
    let rows = model.replicas().iter().map(|line| {
        let figures = [
            line.backlog_tasks.to_string(),
            seconds(line.lag_seconds),
            line.in_flight.to_string(),
            line.retrying.to_string(),
            line.dead_letters.to_string(),
            rate(line.delivered_per_second),
            rate(line.failed_per_second),
        ];
        let limited = if line.limits.is_none() { "" } else { LIMITED };
        let names = [clean(&line.replica), format!("{}{limited}", line.state.as_str())];
        let figures = figures.into_iter().zip(headings).filter(|(_, heading)| shown(heading));
        let figures = figures.map(|(figure, _)| right(figure));
        let cells = names.map(Cell::from).into_iter().chain(figures);
        Row::new(cells).style(style(line))
    });
    let widths = [Constraint::Fill(1), Constraint::Length(state_width(model))]
        .into_iter()
        .chain(headings.into_iter().filter(shown).map(|(_, width, _)| Constraint::Length(width)));
    let table = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut selected = TableState::new().with_selected(model.selected());
    frame.render_stateful_widget(table, area, &mut selected);
}

/// How many figures fit beside the addresses, by priority. Truncated addresses look alike, so up to
/// [`ADDRESS_WIDTH`] columns are reserved for the longest one.
fn figures_that_fit(headings: &[(&str, u16, usize)], width: u16, model: &Model) -> usize {
    let addresses = model.replicas().iter().map(|line| clean(&line.replica).chars().count());
    let longest = addresses.max().unwrap_or(0).min(ADDRESS_WIDTH);
    let room = usize::from(width).saturating_sub(longest + 1 + usize::from(state_width(model)));
    let needed = |count| {
        let shown = headings.iter().filter(|(_, _, priority)| *priority <= count);
        shown.map(|(_, width, _)| usize::from(*width) + 1).sum::<usize>()
    };
    (MIN_FIGURES..=headings.len()).rev().find(|&count| needed(count) <= room).unwrap_or(MIN_FIGURES)
}

fn style(line: &ReplicaFigures) -> Style {
    match line.state {
        ReplicaState::Failing => Style::new().fg(Color::Red),
        ReplicaState::Healthy => Style::new(),
        ReplicaState::Paused | ReplicaState::Recovering => Style::new().fg(Color::Yellow),
    }
}

fn footing(model: &Model) -> Line<'static> {
    let mut parts = Vec::new();
    for (key, what) in [("↑↓", "select"), ("p", "pause"), ("r", "resume"), ("q", "quit")] {
        parts.push(bold(key));
        parts.push(Span::raw(format!(" {what}  ")));
    }
    parts.extend(model.message.as_ref().map(|text| Span::raw(clean(text))));
    Line::from(parts)
}

fn bold(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::BOLD))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

    use super::super::model::Update;
    use super::super::model::tests::figures;
    use super::*;

    fn drawn(model: &Model, width: u16, height: u16) -> (Vec<String>, Terminal<TestBackend>) {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        ((0..height).map(line).map(|line| line.trim_end().to_owned()).collect(), terminal)
    }

    fn model() -> Model {
        let mut model = Model::new("http://127.0.0.1:8085".to_owned());
        let replicas = [
            ("http://a:8081", ReplicaState::Healthy, 0),
            ("http://b:8082", ReplicaState::Failing, 70),
        ];
        for _ in 0..3 {
            model.update(Update::Figures(figures(&replicas)));
        }
        model
    }

    #[test]
    fn the_screen_shows_totals_curves_one_line_per_replica_and_the_keys() {
        let (lines, _) = drawn(&model(), 110, 20);
        assert_eq!(lines[0], "replicator top  http://127.0.0.1:8085  03:04:05 UTC");
        assert_eq!(
            lines[1],
            "accepted 125/s  delivered 250/s  failed 0.5/s  queue 17  retrying 1  dead letters 3"
        );
        assert!(lines[3].starts_with("delivered 250/s"), "{lines:#?}");
        assert!(lines[3].contains("backlog 70") && lines[3].contains("lag 1.5s"), "{lines:#?}");
        assert!(lines[8].starts_with("███ "), "three samples, as high as there is: {lines:#?}");
        let row = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(row(&lines[9])[..4], ["REPLICA", "STATE", "BACKLOG", "LAG"]);
        assert_eq!(
            row(&lines[11]),
            ["http://a:8081", "healthy", "0", "1.5s", "5", "1", "3", "250", "0.5"]
        );
        assert_eq!(row(&lines[10])[..3], ["http://b:8082", "failing", "70"], "the worst first");
        assert_eq!(lines[19], "↑↓ select  p pause  r resume  q quit");
    }

    #[test]
    fn the_selected_line_is_highlighted_and_a_failing_replica_is_red() {
        let mut model = model();
        model.event(&Event::Key(KeyEvent::new(KeyCode::Down, KeyModifiers::NONE)));
        let (_, terminal) = drawn(&model, 110, 20);
        let buffer = terminal.backend().buffer();
        assert!(!buffer[(0, 10)].modifier.contains(Modifier::REVERSED));
        assert!(buffer[(0, 11)].modifier.contains(Modifier::REVERSED));
        assert_eq!(buffer[(0, 10)].fg, Color::Red);
    }

    #[test]
    fn the_screen_shows_waiting_errors_and_messages() {
        let mut waiting = Model::new("http://h".to_owned());
        assert!(drawn(&waiting, 80, 20).0[1].contains("waiting for the first figures"));
        waiting.update(Update::Lost("cannot reach http://h: connection refused".to_owned()));
        assert!(drawn(&waiting, 80, 20).0[0].contains("connection refused"));
        let mut model = model();
        model.update(Update::Message("paused http://a:8081\u{1b}[2J".to_owned()));
        model.update(Update::Polled(figures(&[])));
        model.update(Update::Cluster("cluster q: 2 instances\u{1b}".to_owned()));
        let (lines, _) = drawn(&model, 110, 20);
        assert_eq!(lines[2], "cluster q: 2 instances\\u{1b}");
        assert!(lines[0].ends_with("polled"), "{lines:#?}");
        assert!(lines[19].ends_with("paused http://a:8081\\u{1b}[2J"), "{lines:#?}");
    }

    #[test]
    fn on_a_small_screen_addresses_have_priority_over_figures() {
        let mut model = Model::new("http://127.0.0.1:8085".to_owned());
        let replicas = ["http://replica-a.example:8081", "http://replica-b.example:8081"];
        let lines = replicas.map(|replica| (replica, ReplicaState::Healthy, 7));
        model.update(Update::Figures(figures(&lines)));
        let (lines, _) = drawn(&model, 80, 12);
        assert_eq!(
            lines[3].split_whitespace().collect::<Vec<_>>(),
            ["REPLICA", "STATE", "BACKLOG", "LAG", "DEAD", "OUT/S", "FAILED/S"]
        );
        for (replica, line) in replicas.iter().zip(&lines[4..]) {
            assert!(line.starts_with(&format!("{replica} ")), "{lines:#?}");
            assert_eq!(
                line.split_whitespace().collect::<Vec<_>>()[1..],
                ["healthy", "7", "1.5s", "3", "250", "0.5"]
            );
        }
        let (lines, _) = drawn(&model, 40, 12);
        assert!(lines[3].ends_with(" STATE      BACKLOG     LAG"), "{lines:#?}");
    }

    #[test]
    fn a_screen_of_any_size_can_be_drawn() {
        for (width, height) in [(1, 1), (20, 3), (40, 8), (80, 15), (300, 90)] {
            drawn(&model(), width, height);
        }
        let (lines, _) = drawn(&model(), 110, 12);
        assert!(lines[3].starts_with("REPLICA"), "no room for curves: {lines:#?}");
    }
}
