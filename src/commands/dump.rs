//! `replicator export` and `replicator import`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use super::output::{fail, say};
use super::{store_settings, with_causes};
use crate::cli::{ExportArgs, ImportArgs};
use crate::store::{self, Exported, Imported, OpenError, StoreSettings};

pub(super) fn export(args: &ExportArgs) -> ExitCode {
    let settings = store_settings(&args.store);
    let exported = match &args.output {
        Some(path) => to_file(&settings, path),
        None => store::export(&settings, &mut BufWriter::new(io::stdout().lock())),
    };
    let Exported { tasks, problems } = match exported {
        Ok(Ok(exported)) => exported,
        Ok(Err(error)) => {
            let output = args.output.as_deref().unwrap_or(Path::new("standard output"));
            return fail(&format!("cannot write {}: {error}", output.display()));
        }
        Err(error) => return fail(&with_causes(&error)),
    };
    for problem in &problems {
        say(&format!("replicator: skipped: {problem}"));
    }
    say(&format!("replicator: {tasks} tasks exported"));
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Readable by its owner only, as the store, and synced before success is reported.
fn to_file(settings: &StoreSettings, path: &Path) -> Result<io::Result<Exported>, OpenError> {
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    let mut out = BufWriter::new(file);
    let exported = store::export(settings, &mut out)?;
    Ok(exported.and_then(|exported| {
        out.flush()?;
        out.get_ref().sync_all()?;
        Ok(exported)
    }))
}

pub(super) fn import(args: &ImportArgs) -> ExitCode {
    let settings = store_settings(&args.store);
    let imported = match &args.input {
        Some(path) => match File::open(path) {
            Ok(file) => store::import(&settings, &mut BufReader::new(file)),
            Err(error) => return fail(&format!("cannot open {}: {error}", path.display())),
        },
        None => store::import(&settings, &mut io::stdin().lock()),
    };
    match imported {
        Ok(Imported { tasks, skipped }) => {
            say(&format!("replicator: {tasks} tasks imported"));
            if skipped > 0 {
                say(&format!("replicator: {skipped} tasks were skipped by the export"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&with_causes(&error)),
    }
}
