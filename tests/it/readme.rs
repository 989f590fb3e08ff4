//! The documents say what is true, as far as it can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use replicator::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(document: &str) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

/// What stands in backticks in a cell.
fn quoted(cell: &str) -> Option<&str> {
    cell.trim().strip_prefix('`')?.strip_suffix('`')
}

/// The rows of the one table that begins with `header`, as cells.
fn table(text: &str, header: &str) -> Vec<Vec<String>> {
    let (before, after) = text.split_once(header).unwrap();
    assert!(!before.is_empty() && !after.contains(header), "one table has the header {header}");
    let rows = after.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::to_owned).collect()).collect()
}

#[test]
fn the_table_of_flags_is_that_of_the_command_line() {
    let rows = table(&read("README.md"), "| flag | default | what |");
    let told: BTreeMap<_, _> = rows
        .iter()
        .map(|cells| {
            assert_eq!(cells.len(), 3, "{cells:?}");
            (quoted(&cells[0]).unwrap().to_owned(), quoted(&cells[1]).unwrap().to_owned())
        })
        .collect();
    assert_eq!(told.len(), rows.len(), "a flag stands there twice");
    let command = Cli::command();
    let flags = command.get_arguments().filter_map(|arg| {
        let name = arg.get_long().filter(|name| !matches!(*name, "help" | "version"))?;
        let defaults = arg.get_default_values();
        let default = defaults.first().map_or("none", |default| default.to_str().unwrap());
        Some((format!("--{name}"), default.to_owned()))
    });
    assert_eq!(told, flags.collect());
}

#[test]
fn every_path_that_the_documents_name_exists() {
    for document in ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md"] {
        let text = read(document);
        let words = text.split(['`', '(', ')', ' ', '\n']);
        let places =
            ["src/", "tests/", "benches/", "deploy/", "migrations/", "LICENSE", "CHANGELOG"];
        let starts = |word: &str| places.iter().any(|place| word.starts_with(place));
        let mut found = 0;
        for word in words.map(|word| word.trim_start_matches("./")).filter(|word| starts(word)) {
            // A test is named as `file::name`.
            let path = word.split("::").next().unwrap().trim_end_matches([',', '.', ':', ';']);
            assert!(root().join(path).exists(), "{path} in {document}");
            found += 1;
        }
        assert!(found > 3, "{document} names {found} paths");
    }
}

#[test]
fn every_relative_link_leads_somewhere() {
    for document in
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md"]
    {
        let text = read(document);
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap();
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            assert!(file.is_empty() || root().join(file).exists(), "{target} in {document}");
            let slug = |line: &str| line.trim_matches(['#', ' ']).to_lowercase().replace(' ', "-");
            let there = text.lines().any(|line| line.starts_with('#') && slug(line) == anchor);
            assert!(!file.is_empty() || there, "{target} in {document}");
        }
    }
}

/// Every test that a table names, in the last cell of each row, exists.
#[track_caller]
fn tests_exist(rows: &[Vec<String>]) {
    assert!(!rows.is_empty());
    for cells in rows {
        let last = cells.last().unwrap();
        let named: Vec<_> = last.split('`').filter_map(|word| word.split_once("::")).collect();
        assert!(!named.is_empty(), "nothing holds: {}", cells[0]);
        for (file, name) in named {
            let signature = format!("fn {name}(");
            assert!(read(file).contains(&signature), "{file} has no {name}");
        }
    }
}

#[test]
fn every_test_that_holds_an_invariant_exists() {
    tests_exist(&table(&read("ARCHITECTURE.md"), "| invariant | held by |"));
}

#[test]
fn every_attack_that_was_tried_has_its_test() {
    let rows = table(&read("SECURITY.md"), "| attack | what comes of it | shown by |");
    assert!(rows.len() >= 60, "only {} attacks", rows.len());
    tests_exist(&rows);
}
