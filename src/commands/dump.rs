//! `replicator export` and `replicator import`.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use super::admin::text::count;
use super::output::{fail, say};
use super::{store_settings, wall_clock, with_causes};
use crate::cli::daemon::ClusterArgs;
use crate::cli::{ExportArgs, ImportArgs, StoreArgs};
use crate::config::cluster_of_command;
use crate::replica::install_crypto;
use crate::store::{self, Exported, Imported, JetStreamSettings, StoreSettings};

pub(super) fn export(args: &ExportArgs) -> ExitCode {
    let source = match DumpPlace::of(&args.store, &args.cluster) {
        Ok(source) => source,
        Err(why) => return fail(&why),
    };
    let exported = match &args.output {
        Some(path) => to_file(&source, path),
        None => source.export(&mut BufWriter::new(io::stdout().lock())),
    };
    let Exported { tasks, problems } = match exported {
        Ok(Ok(exported)) => exported,
        Ok(Err(error)) => {
            let output = args.output.as_deref().unwrap_or(Path::new("standard output"));
            return fail(&format!("cannot write {}: {error}", output.display()));
        }
        Err(why) => return fail(&why),
    };
    for problem in &problems {
        say(&format!("replicator: skipped: {problem}"));
    }
    say(&format!("replicator: {} exported", count(tasks, "task")));
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A store that is not in use.
enum DumpPlace {
    Directory(StoreSettings),
    Cluster(Box<JetStreamSettings>),
}

impl DumpPlace {
    fn of(directory: &StoreArgs, cluster: &ClusterArgs) -> Result<Self, String> {
        let cluster =
            cluster_of_command(cluster, wall_clock()).map_err(|error| error.to_string())?;
        Ok(match cluster {
            Some(settings) => {
                install_crypto();
                Self::Cluster(Box::new(settings))
            }
            None => Self::Directory(store_settings(directory)),
        })
    }

    fn export(&self, out: &mut dyn Write) -> Result<io::Result<Exported>, String> {
        match self {
            Self::Directory(settings) => {
                store::export(settings, out).map_err(|error| with_causes(&error))
            }
            Self::Cluster(settings) => {
                // As many as the cluster has.
                let settings = JetStreamSettings { partitions: None, ..(**settings).clone() };
                store::export_cluster(&settings, out).map_err(|error| with_causes(&error))
            }
        }
    }

    fn import(&self, input: &mut dyn BufRead) -> Result<Imported, String> {
        match self {
            Self::Directory(settings) => {
                store::import(settings, input).map_err(|error| with_causes(&error))
            }
            Self::Cluster(settings) => {
                store::import_cluster(settings, input).map_err(|error| with_causes(&error))
            }
        }
    }
}

/// Readable by its owner only, as the store, and synced before success is reported.
fn to_file(source: &DumpPlace, path: &Path) -> Result<io::Result<Exported>, String> {
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    let mut out = BufWriter::new(file);
    let exported = source.export(&mut out)?;
    Ok(exported.and_then(|exported| {
        out.flush()?;
        out.get_ref().sync_all()?;
        Ok(exported)
    }))
}

pub(super) fn import(args: &ImportArgs) -> ExitCode {
    let target = match DumpPlace::of(&args.store, &args.cluster) {
        Ok(target) => target,
        Err(why) => return fail(&why),
    };
    let imported = match &args.input {
        Some(path) => match File::open(path) {
            Ok(file) => target.import(&mut BufReader::new(file)),
            Err(error) => return fail(&format!("cannot open {}: {error}", path.display())),
        },
        None => target.import(&mut io::stdin().lock()),
    };
    match imported {
        Ok(Imported { tasks, skipped }) => {
            say(&format!("replicator: {} imported", count(tasks, "task")));
            if skipped > 0 {
                say(&format!("replicator: {} skipped by the export", count(skipped, "task")));
            }
            ExitCode::SUCCESS
        }
        Err(why) => fail(&why),
    }
}
