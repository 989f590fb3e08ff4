//! `replicator top`: live figures in a terminal.
//!
//! [`feed`] fetches the figures, [`model`] holds the screen's state and handles keys, [`view`] draws
//! it; this file is the loop between them. The terminal is restored on every exit: q, signal,
//! error or panic.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use tokio::sync::mpsc;

use super::client::DaemonClient;
use super::{CommandError, CommandOutcome};
use crate::api::Replica;
use crate::commands::serve::Signals;
use model::{Model, TopAction, Update};

mod feed;
mod model;
mod sse;
mod view;

/// Updates or key presses that wait for the loop.
const CHANNEL_SIZE: usize = 64;

/// How soon the keyboard thread notices that it should stop.
const KEYBOARD_POLL: Duration = Duration::from_millis(100);

pub(super) async fn run(client: &DaemonClient) -> Result<CommandOutcome, CommandError> {
    if !io::stdout().is_terminal() {
        let why = "top needs a terminal; use `replicator status` instead";
        return Err(CommandError::Other(why.to_owned()));
    }
    let mut signals = Signals::catch()?;
    let (sender, mut updates) = mpsc::channel(CHANNEL_SIZE);
    let feed = tokio::spawn(feed::run(client.clone(), sender.clone()));
    let cluster = tokio::spawn(feed::follow_cluster(client.clone(), sender.clone()));
    let mut terminal = Terminal::take()?;
    let no_keyboard = |error| CommandError::Other(format!("cannot read the keyboard: {error}"));
    let mut keyboard = Keyboard::listen().map_err(no_keyboard)?;
    let mut model = Model::new(client.url());
    let result = loop {
        if let Err(error) = terminal.0.draw(|frame| view::draw(frame, &model)) {
            break Err(error.into());
        }
        let action = tokio::select! {
            Some(update) = updates.recv() => {
                model.update(update);
                TopAction::Nothing
            }
            event = keyboard.events.recv() => match event {
                Some(Ok(event)) => model.event(&event),
                Some(Err(error)) => break Err(error.into()),
                None => TopAction::Quit,
            },
            _ = signals.next() => TopAction::Quit,
        };
        match action {
            TopAction::Nothing => {}
            TopAction::Quit => break Ok(CommandOutcome::Done),
            TopAction::Pause { replica, paused } => {
                let (client, sender) = (client.clone(), sender.clone());
                // In its own task: a daemon that does not answer must not block the keys.
                tokio::spawn(async move {
                    // Fails only after the loop has ended.
                    let _ = sender.send(pause(&client, &replica, paused).await).await;
                });
            }
        }
    };
    feed.abort();
    cluster.abort();
    result
}

async fn pause(client: &DaemonClient, replica: &str, paused: bool) -> Update {
    let (verb, done) = if paused { ("pause", "paused") } else { ("resume", "resumed") };
    let answer = client.post(&["v1", "replicas", replica, verb], None::<&()>).await;
    match answer.and_then(|answer| client.read::<Replica>(&answer)) {
        Ok(_) => Update::Message(format!("{done} {replica}")),
        Err(error) => Update::Message(format!("cannot {verb} {replica}: {error}")),
    }
}

/// Restores the terminal when dropped. ratatui's panic hook restores it before a panic is printed.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // An error cannot be shown on a broken terminal.
        let _ = ratatui::try_restore();
    }
}

/// Reads the keyboard on its own thread, because reading blocks.
struct Keyboard {
    events: mpsc::Receiver<io::Result<event::Event>>,
    stopped: Arc<AtomicBool>,
}

impl Keyboard {
    fn listen() -> io::Result<Self> {
        let (sender, events) = mpsc::channel(CHANNEL_SIZE);
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        std::thread::Builder::new().spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let event = match event::poll(KEYBOARD_POLL) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let failed = event.is_err();
                if sender.blocking_send(event).is_err() || failed {
                    return;
                }
            }
        })?;
        Ok(Self { events, stopped })
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}
