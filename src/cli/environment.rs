//! The environment's part of the command line.
//!
//! Set to nothing is how compose files, Helm charts and unit files leave a variable out: it is as if
//! it were not set, for every flag of every command. A value that is wrong is an error that names
//! the variable, which the flag that clap names does not tell: nobody has written that flag.
//!
//! The arguments are read twice: without the environment, so that what is wrong with them is their
//! own fault; and with it. A command beside the daemon does not read the daemon's variables.

use std::ffi::{OsStr, OsString};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::Cli;

/// The command line, and which of its values are the environment's.
#[derive(Debug)]
pub struct Given {
    /// The command line, the environment included.
    pub cli: Cli,
    /// Where its values come from.
    pub variables: Variables,
}

/// Why the command line is refused, or the help that it asked for.
#[derive(Debug)]
pub struct Refused {
    /// In the words of clap.
    pub error: clap::Error,
    /// Which variable is to blame.
    pub hint: Option<String>,
}

impl From<clap::Error> for Refused {
    fn from(error: clap::Error) -> Self {
        Self { error, hint: None }
    }
}

/// The flags that have their values from the environment: flag, variable, value.
#[derive(Debug, Default)]
pub struct Variables(Vec<(String, String, OsString)>);

/// Reads the arguments, the name of the program first, and the environment.
///
/// # Errors
///
/// [`Refused`].
pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Given, Refused> {
    let args: Vec<_> = args.into_iter().collect();
    let arguments = match without_any(Cli::command()).try_get_matches_from(&args) {
        Ok(arguments) => arguments,
        // The help shows the variables.
        Err(error) if is_help(&error) => {
            return Err(Cli::command().try_get_matches_from(&args).err().unwrap_or(error).into());
        }
        Err(error) => return Err(error.into()),
    };
    let mut command = without_empty(Cli::command());
    if arguments.subcommand().is_some() {
        command = command.mut_args(|arg| arg.env(NONE));
    }
    let mut variables = Variables::default();
    variables.collect(&command, &arguments);
    match command.try_get_matches_from(&args).and_then(|all| Cli::from_arg_matches(&all)) {
        Ok(cli) => Ok(Given { cli, variables }),
        Err(error) => {
            let hint = variables.blame(&error.to_string());
            Err(Refused { error, hint })
        }
    }
}

/// The arguments alone: for a daemon that is started with settings of its own.
///
/// # Errors
///
/// They are wrong.
pub fn read_arguments(args: &[&str]) -> Result<Cli, clap::Error> {
    let matches = without_any(Cli::command()).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

impl Variables {
    /// A sentence for every variable whose flag stands in an error.
    #[must_use]
    pub fn blame(&self, error: &str) -> Option<String> {
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
            // A flag of the commands below may not be known here.
            let source = arguments.try_contains_id(arg.get_id().as_str()).ok();
            let source = source.and_then(|_| arguments.value_source(arg.get_id().as_str()));
            let written = source == Some(ValueSource::CommandLine);
            if let (false, Some(flag), Some((variable, value))) =
                (written, arg.get_long(), set(arg))
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
    let link = ["tcp://", "udp://", "sctp://"];
    if value.to_str().is_some_and(|value| link.iter().any(|scheme| value.starts_with(scheme))) {
        return format!(
            "{flag} is set by the variable {variable}, which Kubernetes sets for a service of this name: give the service another name, set enableServiceLinks: false in the pod, or give {flag} itself"
        );
    }
    format!("{flag} is set by the variable {variable}: correct the variable, or unset it")
}

const NONE: Option<&'static str> = None;

/// The variable of a flag and what is in it, where it is set to something.
fn set(arg: &Arg) -> Option<(&OsStr, OsString)> {
    let variable = arg.get_env()?;
    Some((variable, std::env::var_os(variable)?)).filter(|(_, value)| !is_empty(value))
}

fn is_empty(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| value.trim().is_empty())
}

fn without_empty(command: Command) -> Command {
    command
        .mut_args(|arg| if set(&arg).is_some() { arg } else { arg.env(NONE) })
        .mut_subcommands(without_empty)
}

fn without_any(command: Command) -> Command {
    command.mut_args(|arg| arg.env(NONE)).mut_subcommands(without_any)
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
    fn an_error_is_blamed_on_the_variable_of_the_flag_that_it_names() {
        let of = |flag: &str, variable: &str, value: &str| {
            (flag.to_owned(), variable.to_owned(), OsString::from(value))
        };
        let variables = Variables(vec![
            of("--replica", "REPLICA", "x"),
            of("--replica-ca", "REPLICA_CA", "x"),
            of("--port", "PORT", "tcp://10.0.0.1:8085"),
        ]);
        let blamed = variables.blame("cannot read x (--replica-ca)").unwrap();
        assert!(
            blamed.contains("variable REPLICA_CA:") && !blamed.contains("REPLICA:"),
            "{blamed}"
        );
        let blamed = variables.blame("wrong value for '--port <PORT>'").unwrap();
        assert!(
            blamed.contains("variable PORT,") && blamed.contains("enableServiceLinks"),
            "{blamed}"
        );
        assert_eq!(variables.blame("--bind is wrong, and --ports"), None);
    }
}
