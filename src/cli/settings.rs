//! The settings of the daemon as they are in force, where each comes from, and the arguments of
//! `replicator config`.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, Subcommand};

use super::daemon::DaemonArgs;
use super::environment::{Origins, ValueOrigin};

const CONFIG_EXIT_CODES: &str = "\
Exit codes:
  0  the settings are valid
  1  a file that they name cannot be used
  2  invalid settings or arguments";

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a config file as the start of the daemon does, without opening the store
    ///
    /// With the flags and the environment of this command. Also reads the files that the settings
    /// name, except for those of --store.
    #[command(after_long_help = CONFIG_EXIT_CODES)]
    Check(Box<ConfigCheckArgs>),
    /// Show each setting, its value and its source
    ///
    /// As a daemon would have it with the flags and the environment of this command. Passwords in
    /// addresses and URLs of notifications are hidden.
    #[command(after_long_help = CONFIG_EXIT_CODES)]
    Show(Box<ConfigShowArgs>),
}

#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// Config file [default: that of --config]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Debug, Args)]
pub struct ConfigShowArgs {
    /// Print JSON on one line
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The long name of the flag, without dashes.
    pub name: String,
    /// Several for a list, none if it is not set. May contain a password.
    pub values: Vec<String>,
    /// The values are secrets as a whole.
    pub is_secret: bool,
    pub source: SettingSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingSource {
    Default,
    File {
        line: usize,
    },
    /// An environment variable.
    Variable {
        name: String,
    },
    Flag,
}

/// A command with only the flags of the daemon.
pub(super) fn daemon_flags() -> Command {
    DaemonArgs::augment_args(Command::new("daemon"))
}

/// Whether the value of a flag is a secret as a whole.
pub(super) fn is_secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set()
}

/// The settings of `arguments`, in the order of the help.
pub(super) fn settings(arguments: &ArgMatches, origins: &Origins) -> Vec<Setting> {
    daemon_flags()
        .get_arguments()
        .filter_map(|arg| {
            let (id, name) = (arg.get_id().as_str(), arg.get_long()?.to_owned());
            let values = arguments.try_get_raw(id).ok().flatten().into_iter().flatten();
            let source = match (arguments.value_source(id), origins.of(&name)) {
                (None | Some(ValueSource::DefaultValue), _) => SettingSource::Default,
                (_, Some(ValueOrigin::Variable { name, .. })) => {
                    SettingSource::Variable { name: name.clone() }
                }
                (_, Some(ValueOrigin::File { line, .. })) => SettingSource::File { line: *line },
                (_, None) => SettingSource::Flag,
            };
            let values = values.map(|value| value.to_string_lossy().into_owned()).collect();
            Some(Setting { name, values, is_secret: is_secret(arg), source })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::environment::read;
    use crate::config::Config;

    /// Values for flags of any kind.
    const VALUES: [&str; 21] = [
        "7",
        "7s",
        "7MiB",
        "700MiB",
        "true",
        "auto",
        "off",
        "on",
        "fsync",
        "replicated",
        "json",
        "0.25",
        "debug",
        "::1",
        "10.0.0.0/8",
        "http://127.0.0.1:7",
        "nats://h:4222",
        "name",
        "/a/file",
        "2000",
        "slack",
    ];

    /// Flags that another one needs.
    const COMPANIONS: [&[&str]; 12] = [
        &[],
        &["--store=nats://h:4222"],
        &["--store=tls://h:4222"],
        &["--store=tls://h:4222", "--store-cert=a"],
        &["--store=tls://h:4222", "--store-key=a"],
        &["--tls-cert=a"],
        &["--tls-key=a"],
        &["--tls-cert=a", "--tls-key=a"],
        &["--replica-cert=a"],
        &["--replica-key=a"],
        &["--notify-url=http://a"],
        &["--notify-format=slack"],
    ];

    /// All that a daemon gets from its arguments.
    fn effect(args: &[OsString]) -> Option<String> {
        let line = read([&["replicator".into()], args].concat()).ok()?;
        let mut daemon = line.cli.daemon;
        daemon.config = None;
        let mut config = Config::from_args(&daemon).ok()?;
        config.engine.seed = 0;
        Some(format!("{daemon:?} {config:?}"))
    }

    /// Other flags and a value with which a flag has an effect.
    fn with_effect(name: &str) -> Option<(Vec<OsString>, &'static str)> {
        COMPANIONS.iter().find_map(|companions| {
            let companions: Vec<_> = companions.iter().map(OsString::from).collect();
            let without = effect(&companions);
            let has_effect = |value: &&&str| {
                let flag = format!("--{name}={value}").into();
                let with = effect(&[&companions[..], &[flag]].concat());
                with.is_some() && with != without
            };
            let value = *VALUES.iter().find(has_effect)?;
            Some((companions, value))
        })
    }

    #[test]
    fn the_file_can_set_every_flag_and_has_the_same_effect() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("replicator.toml");
        // One with a secret must be private.
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let daemon = daemon_flags();
        let names = daemon.get_arguments().filter_map(|arg| arg.get_long());
        let names: Vec<_> = names.filter(|name| *name != "config").collect();
        assert!(names.len() > 55, "{names:?}");
        for name in names {
            let (companions, value) = with_effect(name)
                .unwrap_or_else(|| panic!("no value has an effect on {name}: add one to VALUES"));
            let with = |more: String| effect(&[&companions[..], &[more.into()]].concat());
            let by_flag = with(format!("--{name}={value}"));
            let is_bare = value.parse::<f64>().is_ok() || value == "true";
            let bare = is_bare.then(|| value.to_owned());
            for text in bare.into_iter().chain([format!("{value:?}")]) {
                fs::write(&file, format!("{name} = {text}\n")).unwrap();
                let by_file = with(format!("--config={}", file.display()));
                assert_eq!(by_file, by_flag, "{name} = {text}");
            }
        }
    }
}
