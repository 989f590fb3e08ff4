//! `replicator config`: checks and shows the settings of the daemon.

use std::process::ExitCode;

use serde_json::json;

use super::admin::text::Table;
use super::output::{self, fail};
use super::{print_error, validated, with_causes};
use crate::cli::environment::Origins;
use crate::cli::settings::{ConfigArgs, ConfigCheckArgs, ConfigCommand, Setting, SettingSource};
use crate::daemon;
use crate::text::{self, without_secrets};

const HIDDEN: &str = "(hidden)";

pub(super) fn run(args: &ConfigArgs, origins: &Origins, settings: &[Setting]) -> ExitCode {
    match &args.command {
        ConfigCommand::Check(args) => check(args, origins),
        ConfigCommand::Show(args) => {
            let text = if args.json { to_json(settings) } else { to_table(settings) };
            let code = match validated(&args.daemon, origins) {
                Ok(_) => ExitCode::SUCCESS,
                Err(error) => print_error(&error),
            };
            output::exit_code(output::print(text.as_bytes()), code)
        }
    }
}

fn check(args: &ConfigCheckArgs, origins: &Origins) -> ExitCode {
    let (config, _) = match validated(&args.daemon, origins) {
        Ok(valid) => valid,
        Err(error) => return print_error(&error),
    };
    if let Err(error) = daemon::check_files(&config) {
        let why = with_causes(&error);
        let hint = origins.hint(&why).map_or_else(String::new, |hint| format!(" ({hint})"));
        return fail(&format!("{why}{hint}"));
    }
    let file = args.file.as_ref().or(args.daemon.config.as_ref());
    let file = file.map_or("the flags".into(), |file| file.display().to_string());
    let printed = output::line(format_args!("{}: the settings are valid", text::plain(&file)));
    output::exit_code(printed, ExitCode::SUCCESS)
}

/// As the flag takes it, without secrets.
fn value(setting: &Setting) -> Option<String> {
    let values = (!setting.values.is_empty()).then(|| setting.values.join(","));
    values
        .map(|values| if setting.is_secret { HIDDEN.to_owned() } else { without_secrets(&values) })
}

fn to_table(settings: &[Setting]) -> String {
    let mut table = Table::new(&["SETTING", "VALUE", "SOURCE"]);
    for setting in settings {
        let source = match &setting.source {
            SettingSource::Default => "default".to_owned(),
            SettingSource::File { line } => format!("file, line {line}"),
            SettingSource::Variable { name } => format!("variable {name}"),
            SettingSource::Flag => "flag".to_owned(),
        };
        let value = value(setting).unwrap_or_else(|| "-".to_owned());
        table.row([setting.name.clone(), value, source]);
    }
    table.render().iter().map(|line| format!("{line}\n")).collect()
}

fn to_json(settings: &[Setting]) -> String {
    let setting = |setting: &Setting| {
        let (source, line, variable) = match &setting.source {
            SettingSource::Default => ("default", None, None),
            SettingSource::File { line } => ("file", Some(line), None),
            SettingSource::Variable { name } => ("variable", None, Some(name)),
            SettingSource::Flag => ("flag", None, None),
        };
        json!({
            "name": setting.name, "value": value(setting), "source": source, "line": line,
            "variable": variable,
        })
    };
    let settings: Vec<_> = settings.iter().map(setting).collect();
    text::json(&format!("{}\n", json!({ "settings": settings }))).into_owned()
}
