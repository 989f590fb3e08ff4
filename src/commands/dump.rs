//! `replicator export` and `replicator import`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use super::output::{fail, say};
use super::{store_settings, whole};
use crate::cli::{ExportArgs, ImportArgs};
use crate::store::{self, Exported, Imported, OpenError, StoreSettings};

/// Writes the tasks to a file or standard output; says on standard error what came of it.
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
        Err(error) => return fail(&whole(&error)),
    };
    for problem in &problems {
        say(&format!("replicator: left out: {problem}"));
    }
    say(&format!("replicator: {tasks} tasks exported"));
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// For this user alone, as the store is, and on disk when it is said to be.
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

/// Makes a store of a file or of standard input.
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
                say(&format!(
                    "replicator: {skipped} more could not be read when they were exported"
                ));
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(&whole(&error)),
    }
}
