//! `replicator export --url`: a copy of the store of a running daemon.
//!
//! A file appears under its name when the copy is complete and on disk.

use std::io::{self, Write};
use std::path::Path;

use serde::Deserialize;

use super::client::DaemonClient;
use super::screen::Screen;
use super::text::count;
use super::{CommandError, CommandOutcome};
use crate::commands::aside::AsideFile;

/// More than the last line of a copy.
const LAST_BYTES: usize = 4096;

/// The last line of a copy.
#[derive(Deserialize)]
struct LastLine {
    #[serde(rename = "end")]
    _end: u32,
    tasks: u64,
    skipped: u64,
}

pub(super) async fn run(
    output: Option<&Path>,
    client: &DaemonClient,
    screen: &mut Screen,
) -> Result<CommandOutcome, CommandError> {
    let LastLine { tasks, skipped, .. } = match output {
        Some(path) => to_file(path, client).await?,
        None => copy(client, &mut io::stdout().lock()).await?,
    };
    if skipped > 0 {
        screen.message(&format!("{} skipped: damaged", count(skipped, "task")));
    }
    screen.message(&format!("{} exported", count(tasks, "task")));
    Ok(if skipped == 0 { CommandOutcome::Done } else { CommandOutcome::Failed })
}

/// Writes the copy aside, readable by its owner only.
async fn to_file(path: &Path, client: &DaemonClient) -> Result<LastLine, CommandError> {
    let failed =
        |error: io::Error| CommandError::Other(format!("cannot write {}: {error}", path.display()));
    if path.symlink_metadata().is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let mut aside = AsideFile::create(path).map_err(failed)?;
    let last = copy(client, &mut aside.file).await.map_err(|error| match error {
        CommandError::Print(error) => failed(error),
        other => other,
    })?;
    aside.finish().map_err(failed)?;
    Ok(last)
}

/// Copies the lines as they come, and requires the last one.
async fn copy(client: &DaemonClient, out: &mut dyn Write) -> Result<LastLine, CommandError> {
    let mut lines = client.download(&["v1", "snapshot"]).await?;
    let mut last = Vec::new();
    while let Some(part) = lines.next(client.timeout()).await? {
        out.write_all(&part)?;
        last.extend_from_slice(&part);
        last.drain(..last.len().saturating_sub(LAST_BYTES));
    }
    out.flush()?;
    let line =
        last.strip_suffix(b"\n").and_then(|lines| lines.rsplit(|byte| *byte == b'\n').next());
    line.and_then(|line| serde_json::from_slice(line).ok()).ok_or_else(|| {
        CommandError::Other(format!("the copy from {} ends without its last line", client.url()))
    })
}
