//! `replicator top`: the figures as they come, in a terminal, and two keys that do something.
//!
//! [`feed`] brings the figures, [`model`] holds what is on the screen and knows the keys, [`view`]
//! draws it; here is the loop between them. Whatever ends it (q, a signal, an error, a panic) gives
//! the terminal back as it was.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use tokio::sync::mpsc;

use super::client::Client;
use super::{Failure, Outcome};
use crate::api::Replica;
use crate::commands::serve::Signals;
use model::{Action, Model, Update};

mod feed;
mod model;
mod sse;
mod view;

/// Updates that wait for the screen.
const WAITING: usize = 64;

/// How long the reader of the keyboard may take to notice that nobody wants its keys any more.
const KEYBOARD_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run(client: &Client) -> Result<Outcome, Failure> {
    if !io::stdout().is_terminal() {
        let why = "top needs a terminal; `replicator status` prints how it is now";
        return Err(Failure::Other(why.to_owned()));
    }
    let mut signals = Signals::catch()?;
    let (sender, mut updates) = mpsc::channel(WAITING);
    let feed = tokio::spawn(feed::run(client.clone(), sender.clone()));
    let mut terminal = Terminal::take()?;
    let unheard = |error| Failure::Other(format!("cannot listen to the keyboard: {error}"));
    let mut keyboard = Keyboard::listen().map_err(unheard)?;
    let mut model = Model::new(client.url());
    let ended = loop {
        if let Err(error) = terminal.0.draw(|frame| view::draw(frame, &model)) {
            break Err(error.into());
        }
        let action = tokio::select! {
            Some(update) = updates.recv() => {
                model.update(update);
                Action::Nothing
            }
            heard = keyboard.events.recv() => match heard {
                Some(Ok(event)) => model.event(&event),
                Some(Err(error)) => break Err(error.into()),
                None => Action::Quit,
            },
            _ = signals.next() => Action::Quit,
        };
        match action {
            Action::Nothing => {}
            Action::Quit => break Ok(Outcome::Done),
            Action::Pause { replica, paused } => {
                let (client, sender) = (client.clone(), sender.clone());
                // Beside the loop: a daemon that does not answer must not stop the keys.
                tokio::spawn(async move {
                    // Nobody listens any more when the command has ended.
                    let _ = sender.send(pause(&client, &replica, paused).await).await;
                });
            }
        }
    };
    feed.abort();
    ended
}

/// Pauses or resumes a replica, and says what came of it.
async fn pause(client: &Client, replica: &str, paused: bool) -> Update {
    let (verb, done) = if paused { ("pause", "paused") } else { ("resume", "resumed") };
    let answer = client.post(&["v1", "replicas", replica, verb], None::<&()>).await;
    match answer.and_then(|answer| client.read::<Replica>(&answer)) {
        Ok(_) => Update::Said(format!("{done} {replica}")),
        Err(error) => Update::Said(format!("cannot {verb} {replica}: {error}")),
    }
}

/// The terminal while it is ours. A panic gives it back too, before it is told.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn take() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // There is nobody to tell that the terminal cannot be given back.
        let _ = ratatui::try_restore();
    }
}

/// The keyboard, read by a thread of its own, as reading blocks.
struct Keyboard {
    events: mpsc::Receiver<io::Result<event::Event>>,
    unwanted: Arc<AtomicBool>,
}

impl Keyboard {
    fn listen() -> io::Result<Self> {
        let (sender, events) = mpsc::channel(WAITING);
        let unwanted = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&unwanted);
        std::thread::Builder::new().spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let heard = match event::poll(KEYBOARD_PAUSE) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let over = heard.is_err();
                if sender.blocking_send(heard).is_err() || over {
                    return;
                }
            }
        })?;
        Ok(Self { events, unwanted })
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.unwanted.store(true, Ordering::Relaxed);
    }
}
