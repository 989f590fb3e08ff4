//! State of the screen and the meaning of keys. No terminal and no daemon.

use std::collections::VecDeque;

use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::api::{Figures, ReplicaChange, ReplicaEvent, ReplicaFigures};

/// Samples per curve, one per second; more than any screen is wide.
const MAX_SAMPLES: usize = 512;

#[derive(Debug)]
pub(super) enum Update {
    /// From the event stream.
    Figures(Figures),
    /// From polling, when there is no stream.
    Polled(Figures),
    Replica(ReplicaEvent),
    /// The instances of a cluster store, in one line.
    Cluster(String),
    Lost(String),
    Message(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum TopAction {
    Nothing,
    Quit,
    Pause { replica: String, paused: bool },
}

#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<u64>);

impl Samples {
    fn push(&mut self, sample: u64) {
        if self.0.len() == MAX_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    pub(super) fn last(&self, width: usize) -> Vec<u64> {
        let skipped = self.0.len().saturating_sub(width);
        self.0.iter().skip(skipped).copied().collect()
    }
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) url: String,
    pub(super) figures: Option<Figures>,
    /// The figures come from polling.
    pub(super) polled: bool,
    pub(super) lost: Option<String>,
    pub(super) message: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) delivered: Samples,
    pub(super) backlog: Samples,
    pub(super) lag_millis: Samples,
    /// An address, so that the selection stays when the list changes.
    selected: Option<String>,
}

impl Model {
    pub(super) fn new(url: String) -> Self {
        Self {
            url,
            figures: None,
            polled: false,
            lost: None,
            message: None,
            cluster: None,
            delivered: Samples::default(),
            backlog: Samples::default(),
            lag_millis: Samples::default(),
            selected: None,
        }
    }

    pub(super) fn update(&mut self, update: Update) {
        match update {
            Update::Figures(figures) => self.take(figures, false),
            Update::Polled(figures) => self.take(figures, true),
            Update::Replica(event) => self.message = Some(describe(&event)),
            Update::Cluster(text) => self.cluster = Some(text),
            Update::Lost(why) => self.lost = Some(why),
            Update::Message(what) => self.message = Some(what),
        }
    }

    fn take(&mut self, mut figures: Figures, polled: bool) {
        figures.replicas.sort_by_key(|line| (line.state, line.dead_letters == 0));
        self.delivered.push(rounded(figures.delivered_per_second));
        self.backlog.push(figures.backlog_tasks);
        self.lag_millis.push(rounded(figures.lag_seconds * 1e3));
        (self.polled, self.lost) = (polled, None);
        self.figures = Some(figures);
    }

    pub(super) fn replicas(&self) -> &[ReplicaFigures] {
        self.figures.as_ref().map_or(&[], |figures| figures.replicas.as_slice())
    }

    /// Index of the selected replica; the first if the selected one is gone.
    pub(super) fn selected(&self) -> Option<usize> {
        let replicas = self.replicas();
        let there = replicas.iter().position(|line| Some(&line.replica) == self.selected.as_ref());
        there.or((!replicas.is_empty()).then_some(0))
    }

    pub(super) fn event(&mut self, event: &Event) -> TopAction {
        let Event::Key(key) = event else {
            // A resize needs no action: the loop redraws after every event.
            return TopAction::Nothing;
        };
        if key.kind == KeyEventKind::Release {
            return TopAction::Nothing;
        }
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => TopAction::Quit,
            KeyCode::Char('q') | KeyCode::Esc => TopAction::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.select(|line| line.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.select(|line| line + 1),
            KeyCode::Home => self.select(|_| 0),
            KeyCode::End => self.select(|_| usize::MAX),
            KeyCode::Char('p') => self.pause(true),
            KeyCode::Char('r') => self.pause(false),
            _ => TopAction::Nothing,
        }
    }

    fn select(&mut self, to: impl FnOnce(usize) -> usize) -> TopAction {
        if let Some(line) = self.selected() {
            let line = to(line).min(self.replicas().len().saturating_sub(1));
            self.selected = self.replicas().get(line).map(|line| line.replica.clone());
        }
        TopAction::Nothing
    }

    fn pause(&mut self, paused: bool) -> TopAction {
        let line = self.selected().and_then(|line| self.replicas().get(line));
        let Some(replica) = line.map(|line| line.replica.clone()) else {
            return TopAction::Nothing;
        };
        let doing = if paused { "pausing" } else { "resuming" };
        self.message = Some(format!("{doing} {replica} …"));
        self.selected = Some(replica.clone());
        TopAction::Pause { replica, paused }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "for drawing only; the cast saturates"
)]
fn rounded(figure: f64) -> u64 {
    figure.round() as u64
}

fn describe(event: &ReplicaEvent) -> String {
    let what = match event.change {
        ReplicaChange::Failing => "is failing",
        ReplicaChange::Recovering => "is recovering",
        ReplicaChange::Healthy => "is healthy again",
        ReplicaChange::Paused => "is paused",
        ReplicaChange::Resumed => "is resumed",
        ReplicaChange::Forgotten => "is forgotten",
        ReplicaChange::Renamed => "is renamed",
        ReplicaChange::Limited => "has new limits",
    };
    let detail = event.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
    format!("{} {what}{detail}", event.replica)
}

#[cfg(test)]
pub(super) mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;
    use crate::task::{ReplicaLimits, ReplicaState};

    pub(in super::super) fn figures(replicas: &[(&str, ReplicaState, u64)]) -> Figures {
        let line = |(replica, state, backlog): &(&str, ReplicaState, u64)| ReplicaFigures {
            replica: (*replica).to_owned(),
            state: *state,
            backlog_tasks: *backlog,
            lag_seconds: 1.5,
            in_flight: 5,
            retrying: 1,
            dead_letters: 3,
            delivered_per_second: 250.0,
            failed_per_second: 0.5,
            limits: ReplicaLimits::default(),
        };
        Figures {
            at: "2026-01-02T03:04:05.678Z".to_owned(),
            accepted_per_second: 125.0,
            delivered_per_second: 250.0,
            failed_per_second: 0.5,
            queue_tasks: 17,
            retry_tasks: 1,
            dead_letters: 3,
            backlog_tasks: replicas.iter().map(|(_, _, backlog)| backlog).sum(),
            lag_seconds: 1.5,
            replicas: replicas.iter().map(line).collect(),
        }
    }

    fn press(model: &mut Model, code: KeyCode) -> TopAction {
        model.event(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn three() -> Vec<(&'static str, ReplicaState, u64)> {
        ["http://a", "http://b", "http://c"].map(|name| (name, ReplicaState::Healthy, 1)).to_vec()
    }

    #[test]
    fn the_selection_stays_on_its_replica_and_within_the_list() {
        let mut model = Model::new(String::new());
        assert_eq!(press(&mut model, KeyCode::Down), TopAction::Nothing);
        assert_eq!(model.selected(), None);
        model.update(Update::Figures(figures(&three())));
        press(&mut model, KeyCode::Up);
        assert_eq!(model.selected(), Some(0));
        press(&mut model, KeyCode::Down);
        press(&mut model, KeyCode::Char('j'));
        press(&mut model, KeyCode::Down);
        assert_eq!(model.selected(), Some(2));
        model.update(Update::Figures(figures(&three()[1..])));
        assert_eq!(model.selected(), Some(1), "it is still http://c");
        model.update(Update::Figures(figures(&three()[..2])));
        assert_eq!(model.selected(), Some(0), "it is gone");
    }

    #[test]
    fn keys_pause_and_resume_the_selected_replica_and_quit() {
        let mut model = Model::new(String::new());
        assert_eq!(press(&mut model, KeyCode::Char('p')), TopAction::Nothing);
        model.update(Update::Figures(figures(&three())));
        press(&mut model, KeyCode::End);
        let replica = "http://c".to_owned();
        let pause = TopAction::Pause { replica: replica.clone(), paused: true };
        assert_eq!(press(&mut model, KeyCode::Char('p')), pause);
        let resume = TopAction::Pause { replica, paused: false };
        assert_eq!(press(&mut model, KeyCode::Char('r')), resume);
        assert_eq!(press(&mut model, KeyCode::Char('q')), TopAction::Quit);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(model.event(&Event::Key(interrupt)), TopAction::Quit);
    }

    #[test]
    fn figures_clear_the_lost_state_and_samples_are_bounded() {
        let mut model = Model::new(String::new());
        model.update(Update::Lost("gone".to_owned()));
        assert!(model.lost.is_some());
        for second in 0..MAX_SAMPLES as u64 + 7 {
            model.update(Update::Polled(figures(&[("http://a", ReplicaState::Failing, second)])));
        }
        assert!(model.lost.is_none() && model.polled);
        assert_eq!(model.backlog.last(2), [MAX_SAMPLES as u64 + 5, MAX_SAMPLES as u64 + 6]);
        assert_eq!(model.backlog.last(usize::MAX).len(), MAX_SAMPLES);
        assert_eq!(model.lag_millis.last(1), [1500]);
    }
}
