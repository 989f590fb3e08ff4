//! The short help, `-h`: it fits on one screen. `--help` lists everything.
//!
//! It leaves out the variables, the connection flags of a command, and the flags of the daemon that
//! few people set.

use std::ffi::OsString;

use clap::Command;
use clap::builder::Resettable;

/// The flags of the daemon in its short help.
const COMMON: [&str; 9] =
    ["config", "data_dir", "store", "bind", "port", "auth_file", "workers", "allow_replica", "log"];

const ALL: &str = "See --help for all options, their variables and exit codes.";
const CONNECTION: &str = "Connection";
const CONNECT: &str = "See --help for --url, --token-file and the other connection options.";

/// Whether the arguments ask for the short help.
pub(super) fn is_short(args: &[OsString]) -> bool {
    args.iter().find(|arg| *arg == "-h" || *arg == "--help").is_some_and(|arg| arg == "-h")
}

/// The command line with the short help of each command.
pub(super) fn short(command: Command) -> Command {
    let daemon = command.clone().get_arguments().any(|arg| arg.get_id() == "data_dir");
    let daemon = daemon && command.has_subcommands();
    of_command(command.mut_args(|arg| match COMMON.contains(&arg.get_id().as_str()) {
        true if daemon => arg.help_heading(Resettable::Reset).hide_possible_values(true),
        false if daemon => arg.hide_short_help(true),
        _ => arg,
    }))
    .after_help(ALL)
}

fn of_command(command: Command) -> Command {
    let connects = |arg: &clap::Arg| arg.get_help_heading() == Some(CONNECTION);
    let client = command.get_arguments().any(connects);
    let command = command.mut_args(|arg| {
        let hidden = arg.get_help_heading().is_some();
        let arg = arg.hide_env(true);
        if hidden { arg.hide_short_help(true) } else { arg }
    });
    let command = if client { command.after_help(CONNECT) } else { command };
    command.mut_subcommands(move |sub| {
        let sub = of_command(sub);
        if client { sub.after_help(CONNECT) } else { sub }
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn help(line: &str) -> String {
        let command = short(Cli::command()).term_width(100);
        let words = std::iter::once("replicator").chain(line.split_whitespace());
        command.try_get_matches_from(words).unwrap_err().to_string()
    }

    fn names(command: &Command, above: &str, found: &mut Vec<String>) {
        found.push(format!("{above} -h"));
        for sub in command.get_subcommands() {
            names(sub, &format!("{above} {}", sub.get_name()), found);
        }
    }

    #[test]
    fn every_short_help_fits_on_one_screen() {
        let mut lines = Vec::new();
        names(&Cli::command(), "", &mut lines);
        assert!(lines.iter().any(|line| line == " dead-letters redrive -h"), "{lines:?}");
        for line in lines {
            let text = help(&line);
            assert!(text.lines().count() <= 41, "{line}:\n{text}");
            assert!(!text.contains("[env:") && !text.contains("--ca-file"), "{line}:\n{text}");
        }
    }

    #[test]
    fn the_short_help_of_the_daemon_has_the_common_flags_in_one_line_each() {
        let text = help("-h");
        for id in COMMON {
            let flag = format!("--{}", id.replace('_', "-"));
            assert!(text.lines().any(|line| line.trim_start().starts_with(&flag)), "{id}:\n{text}");
        }
        let flags = text.split("Options:\n").nth(1).unwrap();
        let flags = flags.lines().take_while(|line| !line.is_empty()).count();
        assert_eq!(flags, COMMON.len() + 2, "with --help and --version:\n{text}");
        assert!(text.trim_end().ends_with(ALL), "{text}");
    }

    #[test]
    fn the_first_help_flag_decides() {
        let is_short =
            |line: &str| is_short(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is_short("replicator tasks -h") && is_short("replicator -h --help"));
        assert!(!is_short("replicator --help -h") && !is_short("replicator help tasks"));
    }
}
