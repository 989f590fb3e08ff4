//! `replicator token`: creates a token and its line for `--auth-file`; lists the tokens of a file.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::admin::text::Table;
use super::output::{self, fail, say};
use super::with_causes;
use crate::access::{Grant, NewToken, TokenList, check_name, check_replica};
use crate::cli::{NewTokenArgs, TokenArgs, TokenCommand};
use crate::task::Node;
use crate::text;

pub(super) fn run(args: &TokenArgs) -> ExitCode {
    match &args.command {
        TokenCommand::New(args) => match make(args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        TokenCommand::List(args) => match TokenList::read(&args.auth_file) {
            Ok(list) => {
                let text = if args.json { to_json(&list) } else { to_table(&list) };
                output::exit_code(output::print(text.as_bytes()), ExitCode::SUCCESS)
            }
            Err(error) => fail(&with_causes(&error)),
        },
    }
}

fn to_json(list: &TokenList) -> String {
    let token = |(id, grant): &(String, &Grant)| {
        let roles: Vec<_> = grant.roles.iter().map(ToString::to_string).collect();
        let replicas = grant.replicas.as_ref();
        let replicas = replicas.map(|nodes| nodes.iter().map(Node::as_str).collect::<Vec<_>>());
        json!({
            "name": *grant.name, "roles": roles, "replicas": replicas, "rate": grant.rate, "id": id,
        })
    };
    let tokens: Vec<_> = list.grants().iter().map(token).collect();
    text::json(&format!("{}\n", json!({ "tokens": tokens }))).into_owned()
}

fn to_table(list: &TokenList) -> String {
    let mut table = Table::new(&["NAME", "ROLES", ">RATE", "ID", "REPLICAS"]);
    for (id, grant) in list.grants() {
        let roles: Vec<_> = grant.roles.iter().map(ToString::to_string).collect();
        let nodes = grant.replicas.as_ref();
        let nodes = nodes.map(|nodes| nodes.iter().map(Node::as_str).collect::<Vec<_>>());
        table.row([
            grant.name.to_string(),
            roles.join(","),
            grant.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate}/s")),
            id,
            nodes.map_or_else(|| "all".to_owned(), |nodes| nodes.join(",")),
        ]);
    }
    table.render().iter().map(|line| format!("{line}\n")).collect()
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
    let stored = token.stored().ok_or("the new token cannot be parsed")?;
    let line = grant.line(&stored);
    match &args.append {
        Some(file) => {
            append(file, &line)?;
            say(&format!(
                "Appended its line to {}. Send SIGHUP to the daemon to load it.",
                file.display()
            ));
        }
        None => {
            say(&"Add this line to the --auth-file and send SIGHUP to the daemon:");
            say(&line);
        }
    }
    say(&"The token (it is not shown again):");
    // A closed pipe is an error here, because the token cannot be shown again.
    let printed = output::line(format_args!("{}", token.reveal()));
    printed.map_err(|error| match &args.append {
        Some(file) => format!(
            "the token is lost: {error}; remove the line of {} from {}",
            grant.name,
            file.display()
        ),
        None => format!("the token is lost: {error}"),
    })
}

/// Appends a line, unless the daemon would refuse to start with the result.
fn append(path: &Path, line: &str) -> Result<(), String> {
    let unwritten = |error: io::Error| format!("cannot append to {}: {error}", path.display());
    let list = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        list => list.map_err(unwritten)?,
    };
    // A line edited by hand may lack its line end.
    let begin = if list.is_empty() || list.ends_with('\n') { "" } else { "\n" };
    let line = format!("{begin}{line}\n");
    TokenList::parse(&format!("{list}{line}"), path)
        .map_err(|error| format!("nothing was appended, the file would be invalid: {error}"))?;
    let mut open = OpenOptions::new();
    let file = open.append(true).create(true).mode(0o600).open(path);
    let mut file = file.map_err(unwritten)?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritten)
}
