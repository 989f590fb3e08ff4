//! The config file (`--config`): TOML, whose keys are the long names of the daemon's flags.
//!
//! An entry only becomes arguments: clap parses its value as that of the flag, with the same limits
//! and messages. So no flag is defined here a second time.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use clap::builder::Str;
use clap::{Arg, ArgAction, Command};
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::{self, daemon_flags};
use crate::text::{quoted, unmarked, without_secrets};
use crate::trusted_file::{FileContent, UntrustedFile, read_trusted};

/// A thousand rules for replicas are about a tenth of this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Names at least as similar as this are suggested, as clap does for flags.
const SIMILAR: f64 = 0.7;

/// The id of the flag that names the file. A file cannot name another one.
pub(super) const CONFIG: &str = "config";

#[derive(Debug)]
pub(super) struct FileEntry {
    pub(super) line: usize,
    /// The id of the argument.
    pub(super) id: String,
    /// `--flag=value`, several for a list.
    pub(super) arguments: Vec<String>,
    is_secret: bool,
}

#[derive(Debug, Error)]
pub(super) enum ConfigFileError {
    #[error("cannot read {} (--config): {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    /// Anyone who can write to it can turn every check off.
    #[error("{} (--config) {source}", path.display())]
    Untrusted { path: PathBuf, source: UntrustedFile },
    #[error("{} (--config) is not UTF-8 text", path.display())]
    NotText { path: PathBuf },
    #[error("{}", LinesOf(path, problems))]
    Lines { path: PathBuf, problems: Vec<LineProblem> },
}

#[derive(Debug)]
pub(super) struct LineProblem {
    line: usize,
    why: String,
}

struct LinesOf<'a>(&'a Path, &'a [LineProblem]);

impl Display for LinesOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, LineProblem { line, why }) in self.1.iter().enumerate() {
            let end = if at == 0 { "" } else { "\n" };
            write!(f, "{end}{}, line {line}: {why}", self.0.display())?;
        }
        Ok(())
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<FileEntry>, ConfigFileError> {
    let bytes = |content| {
        read_trusted(path, content, MAX_FILE_BYTES).map_err(|source| match source {
            UntrustedFile::Unreadable(source) => {
                ConfigFileError::Unreadable { path: path.to_owned(), source }
            }
            source => ConfigFileError::Untrusted { path: path.to_owned(), source },
        })
    };
    let text = String::from_utf8(bytes(FileContent::Public)?);
    let text = text.map_err(|_| ConfigFileError::NotText { path: path.to_owned() })?;
    let entries = parse(unmarked(&text))
        .map_err(|problems| ConfigFileError::Lines { path: path.to_owned(), problems })?;
    let has_password = |argument: &String| without_secrets(argument) != *argument;
    if entries.iter().any(|entry| entry.is_secret || entry.arguments.iter().any(has_password)) {
        bytes(FileContent::Secret)?;
    }
    Ok(entries)
}

/// All problems are reported at once, except for errors in the syntax.
fn parse(text: &str) -> Result<Vec<FileEntry>, Vec<LineProblem>> {
    let line = |at: usize| 1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count();
    let table = DeTable::parse(text).map_err(|error| {
        let line = line(error.span().map_or(0, |span| span.start));
        // The message may quote the file.
        let why = without_secrets(error.message());
        vec![LineProblem {
            line,
            why: format!(
                "{why}; a text, a time or a size must be in quotes, such as queue-wait = \"500ms\""
            ),
        }]
    })?;
    let daemon = daemon_flags();
    let (mut entries, mut problems) = (Vec::new(), Vec::new());
    for (key, value) in table.into_inner() {
        let line = line(key.span().start);
        match entry(key.get_ref(), &value, &daemon) {
            Ok((arg, arguments)) => {
                let (id, is_secret) = (arg.get_id().to_string(), settings::is_secret(arg));
                entries.push(FileEntry { line, id, arguments, is_secret });
            }
            Err(why) => problems.push(LineProblem { line, why }),
        }
    }
    problems.sort_by_key(|problem| problem.line);
    if problems.is_empty() { Ok(entries) } else { Err(problems) }
}

fn flags(daemon: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let flags = daemon.get_arguments().filter(|arg| arg.get_id() != CONFIG);
    flags.filter_map(|arg| Some((arg.get_long()?, arg)))
}

/// The argument of an entry, and the arguments that the entry stands for.
fn entry<'a>(
    key: &str,
    value: &Spanned<DeValue<'_>>,
    daemon: &'a Command,
) -> Result<(&'a Arg, Vec<String>), String> {
    let Some((name, arg)) = flags(daemon).find(|(name, _)| *name == key) else {
        return Err(unknown(key, value.get_ref(), daemon));
    };
    let is_list = matches!(arg.get_action(), ArgAction::Append);
    let values = match value.get_ref() {
        DeValue::Array(items) if is_list && !items.is_empty() => {
            items.iter().map(|item| scalar(item.get_ref())).collect()
        }
        value => scalar(value).map(|value| vec![value]),
    };
    let values: Vec<_> = values.ok_or_else(|| {
        let one = example(name, arg);
        if is_list {
            format!("{name} must be a text or a list of texts with at least one, such as {one}")
        } else {
            format!("{name} must be one value, such as {one}")
        }
    })?;
    let arguments = values.iter().map(|value| format!("--{name}={value}")).collect();
    Ok((arg, arguments))
}

fn unknown(key: &str, value: &DeValue<'_>, daemon: &Command) -> String {
    let name = quoted(key);
    if matches!(value, DeValue::Table(_)) {
        return format!("unknown section {name}: the file has no sections and no dotted keys");
    }
    let similar = |(name, _): (&'_ str, _)| (strsim::jaro(key, name), name.to_owned());
    let best = flags(daemon).map(similar).max_by(|(a, _), (b, _)| a.total_cmp(b));
    match best.filter(|(similar, _)| *similar > SIMILAR) {
        Some((_, name_of_flag)) => {
            format!("unknown setting {name}: did you mean {name_of_flag}?")
        }
        None => format!(
            "unknown setting {name}: the settings are the flags of replicator --help, without --"
        ),
    }
}

/// The value as it is written behind a flag.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => {
            let radix = number.radix();
            i128::from_str_radix(number.as_str(), radix).ok().map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(is_on) => Some(is_on.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// A line that sets a flag: to its default, or to the name of its value.
fn example(name: &str, arg: &Arg) -> String {
    let default = arg.get_default_values().first().and_then(|value| value.to_str());
    let value = default.or(arg.get_value_names().and_then(|names| names.first()).map(Str::as_str));
    let value = value.unwrap_or_default();
    match value.parse::<f64>().is_ok() || value.parse::<bool>().is_ok() {
        true => format!("{name} = {value}"),
        false => format!("{name} = {value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn arguments(text: &str) -> Vec<String> {
        let mut entries = parse(text).unwrap();
        entries.sort_by_key(|entry| entry.line);
        entries.into_iter().flat_map(|entry| entry.arguments).collect()
    }

    fn problems(text: &str) -> Vec<(usize, String)> {
        let problems = parse(text).unwrap_err();
        problems.into_iter().map(|LineProblem { line, why }| (line, why)).collect()
    }

    #[test]
    fn an_entry_is_the_flag_of_its_name() {
        let text = "# comment\nqueue-capacity = 1_000\nport = 0x1f95\ntrace-ratio = 0.5\n\
            insecure = true\n'queue-wait' = '30s'\nallow-replica = ['http://a:1', \"b:1,c:1\"]\n\
            host-name = \"a\"\nmax-retries = -1";
        assert_eq!(
            arguments(text),
            [
                "--queue-capacity=1000",
                "--port=8085",
                "--trace-ratio=0.5",
                "--insecure=true",
                "--queue-wait=30s",
                "--allow-replica=http://a:1",
                "--allow-replica=b:1,c:1",
                "--host-name=a",
                "--max-retries=-1",
            ]
        );
        assert!(arguments("").is_empty() && arguments("# nothing\n").is_empty());
    }

    #[test]
    fn an_unknown_name_is_an_error_with_a_suggestion() {
        for (text, expected) in [
            ("data_dir = '/'", "unknown setting \"data_dir\": did you mean data-dir?"),
            (
                "queue-capcity = 1",
                "unknown setting \"queue-capcity\": did you mean queue-capacity?",
            ),
            ("--port = 1", "unknown setting \"--port\": did you mean port?"),
        ] {
            assert_eq!(problems(text), [(1, expected.to_owned())]);
        }
        for name in ["config", "help", "version", "zzz", "'a\\u{202e}'"] {
            let found = problems(&format!("\n{name} = 1"));
            assert!(found[0].1.starts_with("unknown setting \""), "{found:?}");
            assert!(found[0].0 == 2 && !found[0].1.contains('\u{202e}'), "{found:?}");
        }
        for text in ["[storage]\ndata-dir = 'd'", "storage.data-dir = 'd'"] {
            assert!(problems(text)[0].1.contains("no sections"), "{:?}", problems(text));
        }
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_an_error_that_shows_the_right_form() {
        for (text, expected) in [
            ("workers = [1]", "workers must be one value, such as workers = 5"),
            ("queue-wait = {}", "queue-wait must be one value, such as queue-wait = \"500ms\""),
            ("insecure = 2026-01-01", "insecure must be one value, such as insecure = false"),
            ("auth-file = [['a']]", "auth-file must be one value, such as auth-file = \"FILE\""),
            (
                "host-name = []",
                "host-name must be a text or a list of texts with at least one, such as host-name = \"NAMES\"",
            ),
            (
                "host-name = [['a']]",
                "host-name must be a text or a list of texts with at least one, such as host-name = \"NAMES\"",
            ),
        ] {
            assert_eq!(problems(text), [(1, expected.to_owned())], "{text}");
        }
    }

    #[test]
    fn all_problems_are_reported_in_the_order_of_their_lines() {
        let found = problems("workers = []\nport = 1\nbnid = 'a'\nallow-replica = []\n");
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[test]
    fn an_error_in_the_syntax_names_its_line_and_quotes_no_secret() {
        for text in ["port = 1\nqueue-wait = 30s", "port = 1\nport = 2", "\nbind = 127.0.0.1"] {
            let found = problems(text);
            assert!(found[0].0 == 2 && found[0].1.contains("quotes"), "{text}: {found:?}");
        }
        let found = problems("otlp-endpoint = http://me:s3cret@c:1/");
        assert!(!found[0].1.contains("s3cret"), "{found:?}");
    }

    #[test]
    fn a_file_that_others_can_change_is_refused_and_one_with_a_password_must_be_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let read_with = |mode, text: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            read(&path).map(drop).map_err(|error| error.to_string())
        };
        let password = "otlp-endpoint = 'http://me:s3cret@c:1'";
        let webhook = "notify-url = 'https://hooks.example/T0/s3cret'";
        assert_eq!(read_with(0o644, "\u{feff}port = 1"), Ok(()));
        assert_eq!(read_with(0o600, password), Ok(()));
        for (mode, text, why) in [
            (0o664, "port = 1", "can be written by others"),
            (0o644, password, "is open to others"),
            (0o644, webhook, "is open to others"),
        ] {
            let error = read_with(mode, text).unwrap_err();
            assert!(error.contains("(--config)") && error.contains(why), "{error}");
        }
        let error = read(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read /nonexistent (--config): "), "{error}");
    }
}
