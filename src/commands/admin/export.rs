//! `replicator export --url`: a copy of the store of a running daemon.
//!
//! A file appears under its name when the copy is complete and on disk.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::client::DaemonClient;
use super::screen::Screen;
use super::{CommandError, CommandOutcome};

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
        screen.message(&format!("{skipped} tasks were skipped: their rows are damaged"));
    }
    screen.message(&format!("{tasks} tasks exported"));
    Ok(if skipped == 0 { CommandOutcome::Done } else { CommandOutcome::Failed })
}

/// Writes the copy aside, readable by its owner only.
async fn to_file(path: &Path, client: &DaemonClient) -> Result<LastLine, CommandError> {
    let failed =
        |error: io::Error| CommandError::Other(format!("cannot write {}: {error}", path.display()));
    if path.symlink_metadata().is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let aside = Aside::of(path);
    let create = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside.0);
    let mut file = create.map_err(failed)?;
    let last = copy(client, &mut file).await.map_err(|error| match error {
        CommandError::Print(error) => failed(error),
        other => other,
    })?;
    let finish = || {
        file.sync_all()?;
        fs::rename(&aside.0, path)?;
        File::open(parent(path))?.sync_all()
    };
    finish().map_err(failed)?;
    Ok(last)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file until it has its name. Removed on drop.
struct Aside(PathBuf);

impl Aside {
    fn of(path: &Path) -> Self {
        let mut name = OsString::from(path);
        name.push(format!(".{}.part", std::process::id()));
        Self(name.into())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // If that fails, a file with a name of its own remains.
        let _ = fs::remove_file(&self.0);
    }
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
