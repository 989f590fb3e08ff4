//! `replicator token new`: a token, and the line that makes it good.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use super::fail;
use crate::access::{Fresh, Grant, check_name, check_replica};
use crate::cli::{NewTokenArgs, TokenArgs, TokenCommand};

pub(super) fn run(args: &TokenArgs) -> ExitCode {
    let TokenCommand::New(args) = &args.command;
    match make(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn make(args: &NewTokenArgs) -> Result<(), String> {
    let mut replicas = args.replica.clone();
    for node in &replicas {
        check_replica(node).map_err(|why| format!("--replica {node} {why}"))?;
    }
    replicas.sort();
    replicas.dedup();
    let mut roles = args.role.clone();
    roles.dedup();
    let grant = Grant {
        name: check_name(&args.name)?.into(),
        roles,
        replicas: Some(replicas).filter(|replicas| !replicas.is_empty()),
        rate: args.rate,
    };
    let token = Fresh::make().map_err(|error| error.to_string())?;
    let stored = token.stored().ok_or("the token that was made cannot be read")?;
    let line = grant.line(&stored);
    match &args.append {
        Some(file) => {
            append(file, &line)
                .map_err(|error| format!("cannot add to {}: {error}", file.display()))?;
            eprintln!("Its line is in {}; SIGHUP makes the daemon read it.", file.display());
        }
        None => {
            eprintln!("Add this line to the file of --auth-file; SIGHUP makes the daemon read it:");
            eprintln!("{line}");
        }
    }
    eprintln!("The token, which is not shown again:");
    println!("{}", token.reveal());
    Ok(())
}

fn append(file: &Path, line: &str) -> io::Result<()> {
    let mut open = OpenOptions::new();
    let mut file = open.read(true).append(true).create(true).mode(0o600).open(file)?;
    // The line before may have been written by hand, without its end.
    let whole = file.metadata()?.len() == 0 || {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        last == *b"\n"
    };
    let begin = if whole { "" } else { "\n" };
    file.write_all(format!("{begin}{line}\n").as_bytes())?;
    file.sync_all()
}
