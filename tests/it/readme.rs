//! Compares the documents with the code: tables, paths, links, and what `docs/SUMMARY.md` lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use clap::CommandFactory;
use replicator::testing::Cli;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(document: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(document)).unwrap()
}

/// The pages of the book, `docs/SUMMARY.md` included.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            // The output of `mdbook build docs` is not in the repository.
            if root().join(&path).is_dir() && path != Path::new("docs/book") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// Every document that this repository maintains.
fn documents() -> Vec<PathBuf> {
    let others = [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "migrations/README.md",
    ];
    others.map(PathBuf::from).into_iter().chain(pages()).collect()
}

/// The lines outside of fenced code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The content of a cell that is one span of code.
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
    let rows = table(&read("docs/configuration.md"), "| flag | default | meaning |");
    let listed: BTreeMap<_, _> = rows
        .iter()
        .map(|cells| {
            assert_eq!(cells.len(), 3, "{cells:?}");
            (quoted(&cells[0]).unwrap().to_owned(), quoted(&cells[1]).unwrap().to_owned())
        })
        .collect();
    assert_eq!(listed.len(), rows.len(), "a flag is listed twice");
    let command = Cli::command();
    let flags = command.get_arguments().filter_map(|arg| {
        let name = arg.get_long().filter(|name| !matches!(*name, "help" | "version"))?;
        let defaults = arg.get_default_values();
        let default = defaults.first().map_or("none", |default| default.to_str().unwrap());
        Some((format!("--{name}"), default.to_owned()))
    });
    assert_eq!(listed, flags.collect());
}

#[test]
fn the_first_pages_are_short() {
    for document in ["README.md", "ARCHITECTURE.md"] {
        let lines = read(document).lines().count();
        assert!(lines <= 150, "{document} has {lines} lines");
    }
}

#[test]
fn every_path_that_the_documents_name_exists() {
    let places = ["src/", "tests/", "benches/", "deploy/", "docs/", "migrations/", "fuzz/corpus"];
    let mut found = 0;
    // The changelog also names files of the past.
    for document in documents().into_iter().filter(|document| !document.ends_with("CHANGELOG.md")) {
        let text = read(&document);
        let words = text.split(['`', '(', ')', '[', ']', '#', '|', ' ', '\n']);
        let words = words.map(|word| word.trim_start_matches("./"));
        for word in words.filter(|word| places.iter().any(|place| word.starts_with(place))) {
            // A test is named as `file::name`.
            let path = word.split("::").next().unwrap().trim_end_matches([',', '.', ':', ';']);
            assert!(root().join(path).exists(), "{path} in {}", document.display());
            found += 1;
        }
    }
    assert!(found > 300, "the documents name {found} paths");
}

/// The anchor that GitHub and mdBook give a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        _ if c.is_whitespace() => Some('-'),
        _ if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    };
    heading.to_lowercase().chars().filter_map(kept).collect()
}

/// All anchors of a document. A repeated heading gets a number.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut seen = BTreeMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    for heading in headings.map(|line| anchor(line.trim_start_matches('#').trim())) {
        let times = seen.entry(heading.clone()).or_insert(0);
        anchors.insert(match *times {
            0 => heading,
            times => format!("{heading}-{times}"),
        });
        *times += 1;
    }
    anchors
}

/// The targets of the links in a document, outside of code.
fn links(text: &str) -> Vec<String> {
    let plain = prose(text).flat_map(|line| line.split('`').step_by(2).chain(["\n"]));
    let plain: String = plain.collect();
    let targets = plain.split("](").skip(1);
    targets.map(|target| target.split(')').next().unwrap().to_owned()).collect()
}

/// `target` as seen from `document`, without `..`.
fn resolve(document: &Path, target: &str) -> PathBuf {
    let mut path = document.parent().unwrap().to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => assert!(path.pop(), "{target} leaves the repository"),
            part => path.push(part),
        }
    }
    path
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut found = 0;
    for document in documents() {
        let shown = document.display();
        for link in links(&read(&document)) {
            if link.contains("://") {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((&link, ""));
            let path = if file.is_empty() { document.clone() } else { resolve(&document, file) };
            assert!(root().join(&path).is_file(), "{link} in {shown} leads to no file");
            // The book contains its own pages only.
            let leaves = document.starts_with("docs") && !path.starts_with("docs");
            assert!(!leaves, "{link} in {shown} leaves the book");
            let there = heading.is_empty() || anchors(&read(&path)).contains(heading);
            assert!(there, "{link} in {shown} leads to no heading");
            found += 1;
        }
    }
    assert!(found > 80, "the documents have {found} links");
}

#[test]
fn anchors_follow_the_rule_of_github_and_mdbook() {
    let text = "# What's `new`, in 2?\n```sh\n# a comment\n```\n## Files\n## Files\n";
    let expected = ["files", "files-1", "whats-new-in-2"];
    assert_eq!(anchors(text), expected.map(str::to_owned).into());
}

#[test]
fn links_in_code_are_not_followed() {
    let text = "[a](a.md) `[b](b.md)` [c\nd](c.md#d)\n```\n[e](e.md)\n```\n";
    assert_eq!(links(text), ["a.md", "c.md#d"]);
}

#[test]
fn the_summary_lists_every_page_once() {
    let summary = Path::new("docs/SUMMARY.md");
    let entries = links(&read(summary));
    let mut listed: Vec<_> = entries.iter().map(|entry| resolve(summary, entry)).collect();
    listed.sort();
    let pages: Vec<_> = pages().into_iter().filter(|page| page != summary).collect();
    assert_eq!(listed, pages);
}

/// Every test that a table names, in the last cell of each row, exists.
#[track_caller]
fn tests_exist(rows: &[Vec<String>]) {
    assert!(!rows.is_empty());
    for cells in rows {
        let last = cells.last().unwrap();
        let named: Vec<_> = last.split('`').filter_map(|word| word.split_once("::")).collect();
        assert!(!named.is_empty(), "no test for: {}", cells[0]);
        for (file, name) in named {
            let signature = format!("fn {name}(");
            assert!(read(file).contains(&signature), "{file} has no {name}");
        }
    }
}

/// A text in the source that is continued on the next line counts as one line.
#[test]
fn every_message_of_the_troubleshooting_page_is_one_of_the_program() {
    let source = crate::layering::sources("src").into_iter().map(|(_, text)| text);
    let source = source.map(|text| {
        let lines = text.split("\\\n").enumerate();
        let lines = lines.map(|(n, line)| if n == 0 { line } else { line.trim_start() });
        lines.collect::<String>()
    });
    let source = source.collect::<Vec<_>>().join("\n");
    let rows =
        table(&read("docs/troubleshooting.md"), "| message | check | likely cause and remedy |");
    assert!(rows.len() >= 15, "only {} messages", rows.len());
    for cells in rows {
        let messages = cells[0].split('`').skip(1).step_by(2);
        // This one is of the library that reads the arguments.
        for message in messages.filter(|message| !message.starts_with("invalid value")) {
            for part in message.split('…').map(str::trim) {
                assert!(source.contains(part), "no text of the program contains {part:?}");
            }
        }
    }
}

#[test]
fn every_test_that_holds_an_invariant_exists() {
    let rows = table(&read("docs/internals/invariants.md"), "| invariant | tests |");
    assert!(rows.len() >= 70, "only {} invariants", rows.len());
    tests_exist(&rows);
}

#[test]
fn every_attack_of_the_catalogue_has_its_test() {
    let rows = table(&read("docs/internals/attacks.md"), "| attack | result | test |");
    assert!(rows.len() >= 180, "only {} attacks", rows.len());
    tests_exist(&rows);
}
