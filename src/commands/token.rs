//! `replicator token`: creates a token and its line for `--auth-file`; lists and revokes the tokens of
//! a file.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::admin::text::{Table, bytes};
use super::aside::AsideFile;
use super::output::{self, fail, say};
use super::with_causes;
use crate::access::{Grant, NewToken, TokenList, check_name, check_replica, expiry_text};
use crate::cli::{NewTokenArgs, RevokeTokenArgs, TokenArgs, TokenCommand};
use crate::clock::wall_clock;
use crate::task::{Node, Quota, Timestamp};
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
        TokenCommand::Revoke(args) => match revoke(args) {
            Ok(()) => {
                let file = args.auth_file.display();
                let name = &args.name;
                say(&format!("Removed {name} from {file}. Send SIGHUP to the daemon to load it."));
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
    }
}

fn to_json(list: &TokenList) -> String {
    let now = wall_clock();
    let token = |(id, grant): &(String, &Grant)| {
        let roles: Vec<_> = grant.roles.iter().map(ToString::to_string).collect();
        let replicas = grant.replicas.as_ref();
        let replicas = replicas.map(|nodes| nodes.iter().map(Node::as_str).collect::<Vec<_>>());
        json!({
            "name": *grant.name, "roles": roles, "replicas": replicas, "rate": grant.rate,
            "expires": grant.expires.map(expiry_text), "expired": grant.has_expired(now),
            "places": grant.quota.places, "bytes": grant.quota.bytes, "id": id,
        })
    };
    let tokens: Vec<_> = list.grants().iter().map(token).collect();
    text::json(&format!("{}\n", json!({ "tokens": tokens }))).into_owned()
}

fn to_table(list: &TokenList) -> String {
    let now = wall_clock();
    let headings = ["NAME", "ROLES", ">RATE", ">PLACES", ">BYTES", "EXPIRES", "ID", "REPLICAS"];
    let mut table = Table::new(&headings);
    for (id, grant) in list.grants() {
        let roles: Vec<_> = grant.roles.iter().map(ToString::to_string).collect();
        let nodes = grant.replicas.as_ref();
        let nodes = nodes.map(|nodes| nodes.iter().map(Node::as_str).collect::<Vec<_>>());
        table.row([
            grant.name.to_string(),
            roles.join(","),
            grant.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate}/s")),
            grant.quota.places.map_or_else(|| "-".to_owned(), |places| places.to_string()),
            grant.quota.bytes.map_or_else(|| "-".to_owned(), |all| bytes(all.get())),
            match grant.expires.map(expiry_text) {
                None => "never".to_owned(),
                Some(at) if grant.has_expired(now) => format!("{at} (expired)"),
                Some(at) => at,
            },
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
        expires: expires(args)?,
        quota: Quota { places: args.places, bytes: byte_quota(args)? },
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

fn expires(args: &NewTokenArgs) -> Result<Option<Timestamp>, String> {
    const SECOND: u64 = 1_000_000_000;
    let now = wall_clock();
    // At a full second, which is easier to read.
    let after = |time| {
        let up = now.saturating_add(time).saturating_add(Duration::from_nanos(SECOND - 1));
        Timestamp(up.0 / SECOND * SECOND)
    };
    let expires = args.expires.or(args.expires_in.map(after));
    match expires.filter(|expires| *expires <= now) {
        Some(past) => Err(format!("--expires {} must be in the future", expiry_text(past))),
        None => Ok(expires),
    }
}

fn byte_quota(args: &NewTokenArgs) -> Result<Option<NonZeroU64>, String> {
    let bytes = args.bytes.map(|bytes| NonZeroU64::new(bytes.as_u64()));
    bytes.map(|bytes| bytes.ok_or_else(|| "--bytes must be at least 1B".to_owned())).transpose()
}

/// Removes the line of a token, unless the daemon would refuse the rest.
fn revoke(args: &RevokeTokenArgs) -> Result<(), String> {
    let (name, file) = (&args.name, args.auth_file.display());
    let unchanged = |error: io::Error| format!("cannot revoke {name}: {file}: {error}");
    // A link stays a link.
    let path = fs::canonicalize(&args.auth_file).map_err(unchanged)?;
    let list = fs::read_to_string(&path).map_err(unchanged)?;
    TokenList::parse(&list, &path)
        .map_err(|error| format!("nothing was revoked, the file is invalid: {error}"))?;
    let is_of = |line: &&str| text::unmarked(line).split_whitespace().next() == Some(name);
    let rest: String = list.split_inclusive('\n').filter(|line| !is_of(line)).collect();
    if rest.len() == list.len() {
        return Err(format!("{file} has no token with the name {}", text::quoted(name)));
    }
    TokenList::parse(&rest, &path)
        .map_err(|error| format!("nothing was revoked, the file would be invalid: {error}"))?;
    replace(&path, &rest).map_err(unchanged)
}

/// Replaces a file at once, with the same owner and mode.
fn replace(path: &Path, content: &str) -> io::Result<()> {
    let old = fs::metadata(path)?;
    let mut new = AsideFile::create(path)?;
    fchown(&new.file, Some(old.uid()), Some(old.gid()))?;
    new.file.set_permissions(old.permissions())?;
    new.file.write_all(content.as_bytes())?;
    new.finish()
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
