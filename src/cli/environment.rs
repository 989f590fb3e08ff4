//! Reads the command line with its environment variables.
//!
//! - An empty variable counts as unset, for every flag of every command: compose files, Helm charts
//!   and unit files leave a variable out by setting it to nothing.
//! - An error caused by a variable names the variable. clap names only the flag, which the user
//!   did not write.
//! - A subcommand does not read the daemon's variables.
//!
//! The arguments are parsed twice: first without the environment, so that an error in the arguments
//! is not blamed on a variable, then with it.

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::{Cli, help};

#[derive(Debug)]
pub struct CommandLine {
    pub cli: Cli,
    pub variables: Variables,
}

/// An invalid command line, or a request for help.
#[derive(Debug)]
pub struct CommandLineError {
    pub error: clap::Error,
    /// Names the variable that caused the error.
    pub hint: Option<String>,
}

impl From<clap::Error> for CommandLineError {
    fn from(error: clap::Error) -> Self {
        Self { error, hint: None }
    }
}

/// The flags set by the environment: flag, variable, value.
#[derive(Debug, Default)]
pub struct Variables(Vec<(String, String, OsString)>);

/// Parses `args`, the program name first, and the environment.
pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<CommandLine, CommandLineError> {
    let args: Vec<_> = args.into_iter().collect();
    let arguments = match without_variables(Cli::command()).try_get_matches_from(&args) {
        Ok(arguments) => arguments,
        // The help lists the variables, so it comes from the full command.
        Err(error) if is_help(&error) => {
            let command = Cli::command();
            let command = if help::is_short(&args) { help::short(command) } else { command };
            return Err(command.try_get_matches_from(&args).err().unwrap_or(error).into());
        }
        Err(error) => return Err(error.into()),
    };
    let mut command = without_empty_variables(Cli::command());
    if arguments.subcommand().is_some() {
        command = command.mut_args(|arg| arg.env(NONE));
    }
    let mut variables = Variables::default();
    variables.collect(&command, &arguments);
    match command.try_get_matches_from(&args).and_then(|all| Cli::from_arg_matches(&all)) {
        Ok(cli) => Ok(CommandLine { cli, variables }),
        Err(error) => {
            let hint = variables.hint(&error.to_string());
            Err(CommandLineError { error, hint })
        }
    }
}

pub fn read_arguments(args: &[&str]) -> Result<Cli, clap::Error> {
    let matches = without_variables(Cli::command()).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

impl Variables {
    /// One sentence per variable whose flag is named in `error`.
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
            // `value_source` panics for an id that `arguments` does not know.
            let source = arguments.try_contains_id(arg.get_id().as_str()).ok();
            let source = source.and_then(|_| arguments.value_source(arg.get_id().as_str()));
            let explicit = source == Some(ValueSource::CommandLine);
            if let (false, Some(flag), Some((variable, value))) =
                (explicit, arg.get_long(), set(arg))
            {
                self.0.push((format!("--{flag}"), variable.to_string_lossy().into_owned(), value));
            }
        }
        if let Some((name, arguments)) = arguments.subcommand()
            && let Some(command) = command.find_subcommand(name)
        {
            self.collect(command, arguments);
        }
    }
}

fn sentence((flag, variable, value): &(String, String, OsString)) -> String {
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
    fn the_hint_names_the_variable_of_the_flag_in_the_error() {
        let set_by = |flag: &str, variable: &str, value: &str| {
            (flag.to_owned(), variable.to_owned(), OsString::from(value))
        };
        let variables = Variables(vec![
            set_by("--replica", "REPLICA", "x"),
            set_by("--replica-ca", "REPLICA_CA", "x"),
            set_by("--port", "PORT", "tcp://10.0.0.1:8085"),
        ]);
        let hint = variables.hint("cannot read x (--replica-ca)").unwrap();
        assert!(hint.contains("variable REPLICA_CA:") && !hint.contains("REPLICA:"), "{hint}");
        let hint = variables.hint("wrong value for '--port <PORT>'").unwrap();
        assert!(hint.contains("variable PORT,") && hint.contains("enableServiceLinks"), "{hint}");
        assert_eq!(variables.hint("--bind is wrong, and --ports"), None);
    }
}
