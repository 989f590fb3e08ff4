//! Reads the config file again on SIGHUP.

use std::ffi::OsString;

use parking_lot::Mutex;
use tracing::{error, info, warn};

use super::validated;
use crate::cli::environment;
use crate::cli::settings::Setting;
use crate::config::Config;
use crate::daemon::WITHOUT_RESTART;
use crate::log::LogFilter;
use crate::text::without_secrets;

/// The setting of the log, which needs no restart either.
const LOG: &str = "log";

pub(super) struct SettingsReader {
    args: Vec<OsString>,
    filter: LogFilter,
    in_force: Mutex<Vec<Setting>>,
}

impl SettingsReader {
    pub(super) fn new(args: Vec<OsString>, settings: Vec<Setting>, filter: LogFilter) -> Self {
        Self { args, filter, in_force: Mutex::new(settings) }
    }

    /// The settings with the present content of the config file. Puts the filter of the log in force,
    /// and logs what else has changed. `None` without a file, or if it is not valid.
    pub(super) fn read(&self) -> Option<Config> {
        let mut in_force = self.in_force.lock();
        in_force.iter().find(|setting| setting.name == "config" && !setting.values.is_empty())?;
        let valid = environment::read(self.args.clone()).and_then(|line| {
            let (config, filter) = validated(&line.cli.daemon, &line.origins)?;
            Ok((line.settings, config, filter))
        });
        let (settings, config, filter) = match valid {
            Ok(valid) => valid,
            Err(invalid) => {
                error!(error = %without_secrets(&invalid.to_string()), "the config file is not reloaded: all settings stay as they were");
                return None;
            }
        };
        let changed = changes(&mut in_force, settings);
        if changed.now.iter().any(|name| name == LOG) {
            self.filter.replace(filter);
        }
        info!(changed = changed.now.join(", "), "the config file is reloaded");
        if !changed.with_restart.is_empty() {
            let settings = changed.with_restart.join(", ");
            warn!(
                settings,
                "the config file changes settings that need a restart: they stay as they were"
            );
        }
        Some(config)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct SettingChanges {
    now: Vec<String>,
    with_restart: Vec<String>,
}

/// The names of the settings that differ, and updates those that need no restart.
fn changes(in_force: &mut [Setting], new: Vec<Setting>) -> SettingChanges {
    let mut changes = SettingChanges { now: Vec::new(), with_restart: Vec::new() };
    for new in new {
        let old = in_force.iter_mut().find(|old| old.name == new.name);
        let Some(old) = old.filter(|old| old.values != new.values) else { continue };
        if new.name == LOG || WITHOUT_RESTART.contains(&&*new.name) {
            changes.now.push(new.name.clone());
            *old = new;
        } else {
            changes.with_restart.push(new.name);
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::SettingSource;

    fn setting(name: &str, value: &str) -> Setting {
        let values = value.split_whitespace().map(str::to_owned).collect();
        let (name, source) = (name.to_owned(), SettingSource::Default);
        Setting { name, values, is_secret: false, source }
    }

    #[test]
    fn a_setting_that_needs_a_restart_stays_different_until_then() {
        let mut in_force = [setting("port", "1"), setting("workers", "5"), setting("log", "info")];
        let new = || vec![setting("port", "2"), setting("workers", "7"), setting("log", "info")];
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let with_restart = names(&["port"]);
        let expected = SettingChanges { now: names(&["workers"]), with_restart };
        assert_eq!(changes(&mut in_force, new()), expected);
        assert_eq!(changes(&mut in_force, new()), SettingChanges { now: names(&[]), ..expected });
        let back = vec![setting("port", "1"), setting("workers", "5"), setting("log", "info")];
        let expected = SettingChanges { now: names(&["workers"]), with_restart: names(&[]) };
        assert_eq!(changes(&mut in_force, back), expected);
    }

    #[test]
    fn each_setting_without_a_restart_is_a_setting_and_the_documentation_lists_them() {
        let line = environment::read(["replicator".into()]).unwrap();
        let names: Vec<_> = WITHOUT_RESTART.iter().chain([&LOG]).collect();
        for name in &names {
            assert!(line.settings.iter().any(|setting| setting.name == **name), "{name}");
        }
        let page = include_str!("../../docs/configuration.md");
        let (_, section) = page.split_once("### Changes without a restart").unwrap();
        let (_, list) = section.split_once("in force at once:").unwrap();
        let (list, _) = list.split_once("\n\nA retry").unwrap();
        let mut listed: Vec<_> = list.split(',').map(str::trim).collect();
        listed.sort_unstable();
        let mut names: Vec<_> = names.iter().map(|name| format!("`--{name}`")).collect();
        names.sort_unstable();
        assert_eq!(listed, names);
    }
}
