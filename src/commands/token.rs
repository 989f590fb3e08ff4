//! `replicator token new`: a token, and the line that makes it good.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use super::output::{self, fail, say};
use crate::access::{Grant, NewToken, TokenList, check_name, check_replica};
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
    let token = NewToken::make().map_err(|error| error.to_string())?;
    let stored = token.stored().ok_or("the token that was made cannot be read")?;
    let line = grant.line(&stored);
    match &args.append {
        Some(file) => {
            append(file, &line)?;
            say(&format!("Its line is in {}; SIGHUP makes the daemon read it.", file.display()));
        }
        None => {
            say(&"Add this line to the file of --auth-file; SIGHUP makes the daemon read it:");
            say(&line);
        }
    }
    say(&"The token, which is not shown again:");
    // One line that nobody has seen: no reader has seen enough of it.
    let printed = output::line(format_args!("{}", token.reveal()));
    printed.map_err(|error| match &args.append {
        Some(file) => format!(
            "the token is lost: {error}; take the line of {} out of {}",
            grant.name,
            file.display()
        ),
        None => format!("the token is lost: {error}"),
    })
}

/// Adds a line, if the list is taken with it: one that is not would keep the daemon from starting.
fn append(path: &Path, line: &str) -> Result<(), String> {
    let unwritten = |error: io::Error| format!("cannot add to {}: {error}", path.display());
    let list = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        list => list.map_err(unwritten)?,
    };
    // The line before may have been written by hand, without its end.
    let begin = if list.is_empty() || list.ends_with('\n') { "" } else { "\n" };
    let line = format!("{begin}{line}\n");
    TokenList::parse(&format!("{list}{line}"), path)
        .map_err(|error| format!("nothing is added, the list would not be taken: {error}"))?;
    let mut open = OpenOptions::new();
    let file = open.append(true).create(true).mode(0o600).open(path);
    let mut file = file.map_err(unwritten)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritten)
}
