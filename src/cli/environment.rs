//! Reads the command line with its environment variables and the config file.
//!
//! - A flag wins over its variable, a variable over the file, the file over the default.
//! - An empty variable counts as unset, for every flag of every command: compose files, Helm charts
//!   and unit files leave a variable out by setting it to nothing.
//! - An error caused by a variable or by the file names the variable, or the file and the line. clap
//!   names only the flag, which the user did not write.
//! - A subcommand does not read the daemon's variables and its file, except for `config`.
//!
//! The arguments are parsed twice: first without the environment, so that an error in the arguments
//! is not blamed on a variable, then with it. The second time the entries of the file, as arguments,
//! go before those of the command line.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::file::{self, CONFIG};
use super::settings::{Setting, settings};
use super::{Cli, help};

#[derive(Debug)]
pub struct CommandLine {
    pub cli: Cli,
    pub origins: Origins,
    /// Of the daemon. Empty for a command without its flags.
    pub settings: Vec<Setting>,
}

/// An invalid command line, or a request for help.
#[derive(Debug)]
pub struct CommandLineError {
    pub error: clap::Error,
    /// Names the variable, or the line of the config file, that caused the error.
    pub hint: Option<String>,
}

/// On one line, for the log.
impl fmt::Display for CommandLineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        // The usage follows after an empty line.
        let lines = text.lines().map(str::trim).take_while(|line| !line.is_empty());
        f.write_str(&lines.chain(self.hint.as_deref()).collect::<Vec<_>>().join("; "))
    }
}

impl From<clap::Error> for CommandLineError {
    fn from(error: clap::Error) -> Self {
        Self { error, hint: None }
    }
}

/// Where the value of a flag comes from that is not on the command line.
#[derive(Clone, Debug)]
pub(super) enum ValueOrigin {
    Variable { name: String, value: OsString },
    File { path: PathBuf, line: usize },
}

/// The flags with such a value.
#[derive(Debug, Default)]
pub struct Origins(Vec<(String, ValueOrigin)>);

/// Parses `args`, the program name first, the environment, and the config file that they name.
pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, CommandLineError> {
    let mut args: Vec<_> = args.into_iter().collect();
    let arguments = match without_variables(Cli::command()).try_get_matches_from(&args) {
        Ok(arguments) => arguments,
        // The help lists the variables, so it comes from the full command.
        Err(error) if is_help(&error) => {
            let command = Cli::command();
            let command = if help::is_short(&args) { help::short(command) } else { command };
            return Err(command.try_get_matches_from(&args).err().unwrap_or(error).into());
        }
        // A variable or the file may have it.
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
            let command = without_variables(Cli::command()).ignore_errors(true);
            command.try_get_matches_from(&args)?
        }
        Err(error) => return Err(error.into()),
    };
    let mut command = without_empty_variables(Cli::command());
    if arguments.subcommand().is_some() {
        command = command.mut_args(|arg| arg.env(NONE));
    }
    let mut origins = Origins::default();
    origins.collect(&command, &arguments);
    let daemon = daemon_part(&command, &arguments);
    if let Some((daemon, arguments, words)) = daemon
        && let Some(path) = config_file(daemon, arguments)
    {
        let set_by_file = origins.read_file(&path, daemon, arguments);
        args.splice(words..words, set_by_file?);
    }
    let parsed = command.clone().try_get_matches_from(&args);
    match parsed.and_then(|all| Ok((Cli::from_arg_matches(&all)?, all))) {
        Ok((cli, all)) => {
            let daemon = daemon_part(&command, &all);
            let settings = daemon.map(|(_, all, _)| settings(all, &origins));
            Ok(CommandLine { cli, settings: settings.unwrap_or_default(), origins })
        }
        Err(error) => {
            let hint = origins.hint(&error.to_string());
            Err(CommandLineError { error, hint })
        }
    }
}

/// The part of the command line with the flags of the daemon: the command, its arguments, and the
/// number of words before them.
fn daemon_part<'a>(
    mut command: &'a Command,
    mut arguments: &'a ArgMatches,
) -> Option<(&'a Command, &'a ArgMatches, usize)> {
    let mut words = 1;
    while let Some((name, below)) = arguments.subcommand() {
        (command, arguments) = (command.find_subcommand(name)?, below);
        words += 1;
    }
    let is_daemon = command.get_arguments().any(|arg| arg.get_id() == CONFIG);
    is_daemon.then_some((command, arguments, words))
}

/// The file that the arguments or the environment name.
fn config_file(daemon: &Command, arguments: &ArgMatches) -> Option<PathBuf> {
    let named = |id| arguments.try_get_one::<PathBuf>(id).ok().flatten().cloned();
    let variable = || {
        let arg = daemon.get_arguments().find(|arg| arg.get_id() == CONFIG)?;
        set(arg).map(|(_, path)| path.into())
    };
    // The positional argument of `config check`.
    named("file").or_else(|| named(CONFIG)).or_else(variable)
}

pub fn read_arguments(args: &[&str]) -> Result<Cli, clap::Error> {
    let matches = without_variables(Cli::command()).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

impl Origins {
    /// One sentence per flag that is named in `error`.
    pub fn hint(&self, error: &str) -> Option<String> {
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let named = |flag: &str| {
            let mut after = error.match_indices(flag).filter_map(|(at, _)| error.get(at..));
            after.any(|text| !text.get(flag.len()..).unwrap_or_default().starts_with(is_part))
        };
        let sentences = self.0.iter().filter(|(flag, ..)| named(flag)).map(sentence);
        let mut sentences: Vec<_> = sentences.collect();
        sentences.dedup();
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }

    fn collect(&mut self, command: &Command, arguments: &ArgMatches) {
        for arg in command.get_arguments() {
            if let (false, Some(flag), Some((variable, value))) =
                (is_explicit(arg, arguments), arg.get_long(), set(arg))
            {
                let name = variable.to_string_lossy().into_owned();
                self.0.push((format!("--{flag}"), ValueOrigin::Variable { name, value }));
            }
        }
        if let Some((name, arguments)) = arguments.subcommand()
            && let Some(command) = command.find_subcommand(name)
        {
            self.collect(command, arguments);
        }
    }

    /// Reads the file, and returns its entries as arguments: all but those that the command line or
    /// the environment set.
    fn read_file(
        &mut self,
        path: &Path,
        daemon: &Command,
        arguments: &ArgMatches,
    ) -> Result<Vec<OsString>, CommandLineError> {
        let entries = file::read(path).map_err(|error| {
            let error = Cli::command().error(ErrorKind::ValueValidation, error);
            let hint = self.hint(&error.to_string());
            CommandLineError { error, hint }
        })?;
        let mut set_by_file = Vec::new();
        for entry in entries {
            let arg = daemon.get_arguments().find(|arg| arg.get_id() == entry.id.as_str());
            let Some((flag, arg)) = arg.and_then(|arg| Some((arg.get_long()?, arg))) else {
                continue;
            };
            if !is_explicit(arg, arguments) && set(arg).is_none() {
                let origin = ValueOrigin::File { path: path.to_owned(), line: entry.line };
                self.0.push((format!("--{flag}"), origin));
                set_by_file.extend(entry.arguments.into_iter().map(OsString::from));
            }
        }
        Ok(set_by_file)
    }

    pub(super) fn of(&self, flag: &str) -> Option<&ValueOrigin> {
        self.0.iter().find(|(of, _)| of.strip_prefix("--") == Some(flag)).map(|(_, origin)| origin)
    }
}

/// Whether the command line sets an argument.
fn is_explicit(arg: &Arg, arguments: &ArgMatches) -> bool {
    let id = arg.get_id().as_str();
    // `value_source` panics for an id that `arguments` does not know.
    let source = arguments.try_contains_id(id).ok().and_then(|_| arguments.value_source(id));
    source == Some(ValueSource::CommandLine)
}

fn sentence((flag, origin): &(String, ValueOrigin)) -> String {
    let (variable, value) = match origin {
        ValueOrigin::Variable { name, value } => (name, value),
        ValueOrigin::File { path, line } => {
            return format!("{flag} is set in {}, line {line}: correct it there", path.display());
        }
    };
    let service_link = ["tcp://", "udp://", "sctp://"];
    if value
        .to_str()
        .is_some_and(|value| service_link.iter().any(|scheme| value.starts_with(scheme)))
    {
        return format!(
            "{flag} is set by the variable {variable}, which Kubernetes sets for a service of that name: rename the service, set enableServiceLinks: false in the pod, or pass {flag}"
        );
    }
    format!("{flag} is set by the variable {variable}: correct or unset the variable")
}

const NONE: Option<&'static str> = None;

/// The variable of a flag and its value, unless it is unset or empty.
fn set(arg: &Arg) -> Option<(&OsStr, OsString)> {
    let variable = arg.get_env()?;
    Some((variable, std::env::var_os(variable)?)).filter(|(_, value)| !is_empty(value))
}

fn is_empty(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| value.trim().is_empty())
}

fn without_empty_variables(command: Command) -> Command {
    command
        .mut_args(|arg| if set(&arg).is_some() { arg } else { arg.env(NONE) })
        .mut_subcommands(without_empty_variables)
}

fn without_variables(command: Command) -> Command {
    command.mut_args(|arg| arg.env(NONE)).mut_subcommands(without_variables)
}

fn is_help(error: &clap::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            | ErrorKind::DisplayVersion
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_names_the_variable_or_the_line_of_the_flag_in_the_error() {
        let set_by = |flag: &str, variable: &str, value: &str| {
            let (name, value) = (variable.to_owned(), OsString::from(value));
            (flag.to_owned(), ValueOrigin::Variable { name, value })
        };
        let origins = Origins(vec![
            set_by("--replica", "REPLICA", "x"),
            set_by("--replica-ca", "REPLICA_CA", "x"),
            set_by("--port", "PORT", "tcp://10.0.0.1:8085"),
            ("--log".to_owned(), ValueOrigin::File { path: "c.toml".into(), line: 3 }),
        ]);
        let hint = origins.hint("cannot read x (--replica-ca)").unwrap();
        assert!(hint.contains("variable REPLICA_CA:") && !hint.contains("REPLICA:"), "{hint}");
        let hint = origins.hint("wrong value for '--port <PORT>'").unwrap();
        assert!(hint.contains("variable PORT,") && hint.contains("enableServiceLinks"), "{hint}");
        let hint = origins.hint("--log \"x\" is not a valid filter").unwrap();
        assert_eq!(hint, "--log is set in c.toml, line 3: correct it there");
        assert_eq!(origins.hint("--bind is wrong, and --ports"), None);
    }
}
