//! The documents say what is true, as far as it can be compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use replicator::cli::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What stands in backticks in a cell.
fn quoted(cell: &str) -> Option<&str> {
    cell.trim().strip_prefix('`')?.strip_suffix('`')
}

#[test]
fn the_table_of_flags_is_that_of_the_command_line() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let rows = readme.lines().filter(|line| line.starts_with("| `--"));
    let told: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').collect();
            (quoted(cells[1]).unwrap().to_owned(), quoted(cells[2]).unwrap().to_owned())
        })
        .collect();
    let command = Cli::command();
    let flags = command.get_arguments().filter_map(|arg| {
        let name = arg.get_long().filter(|name| !matches!(*name, "help" | "version"))?;
        let defaults = arg.get_default_values();
        Some((format!("--{name}"), defaults[0].to_str().unwrap().to_owned()))
    });
    assert_eq!(told, flags.collect());
}

#[test]
fn every_path_that_the_documents_name_exists() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root().join(document)).unwrap();
        let words = text.split(['`', '(', ')', ' ', '\n']);
        let places =
            ["src/", "tests/", "benches/", "deploy/", "migrations/", "LICENSE", "CHANGELOG"];
        let paths = words.filter(|word| places.iter().any(|place| word.starts_with(place)));
        let mut found = 0;
        for path in paths {
            let path = path.trim_end_matches([',', '.', ':', ';']);
            assert!(root().join(path).exists(), "{path} in {document}");
            found += 1;
        }
        assert!(found > 3, "{document} names {found} paths");
    }
}
