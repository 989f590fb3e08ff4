//! `replicator check`.

use std::process::ExitCode;

use serde_json::json;

use super::output::{self, fail};
use super::{store_settings, with_causes};
use crate::cli::CheckArgs;
use crate::store::{self, CheckReport};
use crate::text::plain;

pub(super) fn run(args: &CheckArgs) -> ExitCode {
    let checked = match store::check(&store_settings(&args.store), args.repair) {
        Ok(checked) => checked,
        Err(error) => return fail(&with_causes(&error)),
    };
    let report = if args.json { format!("{}\n", to_json(&checked)) } else { to_text(&checked) };
    let success = checked.problems.is_empty() || checked.repaired.is_some();
    let code = if success { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    output::exit_code(output::print(report.as_bytes()), code)
}

fn to_json(checked: &CheckReport) -> serde_json::Value {
    let repaired = checked.repaired.as_ref().map(|aside| {
        json!({
            "tasks_set_aside": aside.tasks,
            "rows_set_aside": aside.rows,
            "file": aside.file,
            "deliveries_superseded": aside.superseded,
        })
    });
    json!({
        "whole": checked.problems.is_empty(),
        "store": checked.store,
        "format": checked.format,
        "commit": checked.commit,
        "tasks": checked.tasks,
        "value_bytes": checked.value_bytes,
        "dead_letters": checked.dead_letters,
        "replicas": checked.replicas,
        "idempotency_keys": checked.idempotency_keys,
        "orphans": checked.orphans,
        "quarantined_rows": checked.quarantined_rows,
        "problems": checked.problems,
        "notes": checked.notes,
        "repaired": repaired,
    })
}

fn to_text(checked: &CheckReport) -> String {
    let CheckReport { store, format, commit, tasks, value_bytes, dead_letters, .. } = checked;
    let mut lines = vec![
        format!("store: {store}, format {format}, commit {commit}"),
        format!(
            "tasks: {tasks} intact, {value_bytes} bytes of values, {dead_letters} dead letters"
        ),
    ];
    let CheckReport { replicas, idempotency_keys, .. } = checked;
    if replicas + idempotency_keys > 0 {
        lines.push(format!("other rows: {replicas} replicas, {idempotency_keys} idempotency keys"));
    }
    if checked.orphans > 0 {
        let orphans = checked.orphans;
        lines.push(format!("orphans: {orphans} rows left by a crash; the next start removes them"));
    }
    if checked.quarantined_rows > 0 {
        lines.push(format!("quarantine: {} rows from earlier repairs", checked.quarantined_rows));
    }
    lines.extend(checked.notes.iter().map(|note| format!("note: {note}")));
    lines.extend(checked.problems.iter().map(|problem| format!("damaged: {problem}")));
    let verdict = match &checked.repaired {
        _ if checked.problems.is_empty() => "the store is intact".to_owned(),
        None => {
            "the store is damaged; --repair moves damaged tasks to quarantine and keeps the rest"
                .to_owned()
        }
        Some(aside) => {
            if let Some(file) = &aside.file {
                lines.push(format!(
                    "quarantined: {} tasks, {} rows, in {}; {} older deliveries of their keys superseded",
                    aside.tasks,
                    aside.rows,
                    file.display(),
                    aside.superseded
                ));
            }
            "repaired: the remaining tasks are accepted as complete".to_owned()
        }
    };
    lines.push(verdict);
    lines.iter().map(|line| format!("{}\n", plain(line))).collect()
}
