//! `replicator completions` and `replicator man`, generated from the command line definition.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory;

use super::output::{self, fail};
use crate::cli::Cli;
use crate::cli::admin::{CompletionsArgs, ManArgs};

pub(super) fn completions(args: &CompletionsArgs) -> ExitCode {
    print(&script(args.shell))
}

pub(super) fn man(args: &ManArgs) -> ExitCode {
    match &args.dir {
        Some(dir) => match write_pages(dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("cannot write to {}: {error}", dir.display())),
        },
        None => match page() {
            Ok(page) => print(&page),
            Err(error) => fail(&format!("cannot generate the page: {error}")),
        },
    }
}

fn script(shell: clap_complete::Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "replicator", &mut script);
    script
}

fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}

fn write_pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}

fn print(text: &[u8]) -> ExitCode {
    output::exit_code(output::print(text), ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::{Command, ValueEnum};
    use clap_complete::Shell;

    use super::*;

    /// Full names of all commands, such as `replicas pause`.
    fn commands(command: &Command, above: &str, found: &mut Vec<String>) {
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let name = format!("{above} {}", sub.get_name());
            commands(sub, &name, found);
            found.push(name.trim().to_owned());
        }
    }

    fn all() -> Vec<String> {
        let mut found = Vec::new();
        commands(&Cli::command(), "", &mut found);
        assert!(found.iter().any(|name| name == "dead-letters redrive"), "{found:?}");
        found
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).unwrap();
            for name in all() {
                let last = name.rsplit(' ').next().unwrap();
                assert!(script.contains(last), "{shell} has no {name}");
            }
            assert!(script.contains("max-lag"), "{shell} has no flags");
        }
    }

    #[test]
    fn every_command_has_a_page_with_its_flags() {
        let dir = tempfile::tempdir().unwrap();
        write_pages(&dir.path().join("man1")).unwrap();
        for name in all() {
            let file = dir.path().join(format!("man1/replicator-{}.1", name.replace(' ', "-")));
            let page = std::fs::read_to_string(&file).unwrap();
            assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH NAME"), "{name}: {page}");
        }
        let whole = String::from_utf8(page().unwrap()).unwrap();
        assert!(whole.contains("data\\-dir") && whole.contains("REPLICATOR_DATA_DIR"), "{whole}");
        assert!(whole.contains("dead\\-letters"), "{whole}");
    }
}
