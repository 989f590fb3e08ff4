//! The language of comments and the names of types, checked in the source.

use std::collections::BTreeMap;
use std::path::Path;

use crate::layering::circles::{plain, shipped, tokens};
use crate::layering::{is_test, sources};

/// Phrases for which there is a plainer word: reported or logged, again, this many, except,
/// continues, must be, is available, anyone who or a client that, no one or no client.
const AVOIDED: [&str; 11] = [
    "told",
    "said of",
    "anew",
    "so many",
    "but for",
    "goes on",
    "is to be",
    "are to be",
    "may be had",
    "whoever",
    "nobody",
];

/// The phrases in the comments of a text, each with the line on which it begins. A phrase may
/// continue on the next line of its comment.
fn avoided(text: &str) -> Vec<(usize, &'static str)> {
    let mut found = vec![];
    let mut comment: Vec<(usize, String)> = vec![];
    for (number, line) in text.lines().chain([""]).enumerate() {
        if let Some(words) = line.trim_start().strip_prefix("//") {
            let words = words.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_');
            let words = words.filter(|word| !word.is_empty());
            comment.extend(words.map(|word| (number + 1, word.to_lowercase())));
            continue;
        }
        for phrase in AVOIDED {
            let words: Vec<_> = phrase.split(' ').collect();
            for there in comment.windows(words.len()) {
                if there.iter().zip(&words).all(|((_, word), expected)| word == expected) {
                    found.push((there[0].0, phrase));
                }
            }
        }
        comment.clear();
    }
    found.sort_unstable();
    found
}

#[test]
fn comments_are_in_plain_english() {
    let mut found = String::new();
    for dir in ["src", "tests", "benches", "migrations", "fuzz/fuzz_targets"] {
        for (path, text) in sources(dir) {
            for (line, phrase) in avoided(&text) {
                found += &format!("{}:{line}: \"{phrase}\"\n", path.display());
            }
        }
    }
    assert!(found.is_empty(), "say it in plainer words (CONTRIBUTING.md, Style):\n{found}");
}

#[test]
fn a_phrase_is_found_as_whole_words_in_comments_only() {
    let text = [
        "//! Untold, renew.",
        "let told = \"whoever\"; // nobody",
        "/// Told once: so",
        "    /// many words.",
        "// so",
        "",
        "// many",
    ];
    assert_eq!(avoided(&text.join("\n")), [(3, "so many"), (3, "told")]);
}

/// The structs, enums, traits and type aliases that a source defines. Associated types belong to
/// their trait and do not count.
fn types(code: &str) -> Vec<&str> {
    let mut names = vec![];
    // For each open brace, whether it opens an `impl` or a `trait`.
    let mut blocks = vec![];
    let mut associated = false;
    let tokens = tokens(code);
    for pair in tokens.windows(2) {
        match pair {
            ["{", _] => blocks.push(std::mem::take(&mut associated)),
            ["}", _] => drop(blocks.pop()),
            [";", _] => associated = false,
            ["impl", _] => associated = true,
            ["trait", name] => {
                associated = true;
                names.push(*name);
            }
            ["struct" | "enum" | "union", name] => names.push(*name),
            ["type", name] if blocks.last() != Some(&true) => names.push(*name),
            _ => {}
        }
    }
    names.retain(|name| name.starts_with(char::is_uppercase));
    names
}

/// Whether a file is only in builds for tests and fuzzing.
fn is_unshipped(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    is_test(path)
        || ["testing", "conformance"].contains(&name)
        || path.starts_with("src/fuzzing")
        || path.starts_with("src/engine/model")
        || path == Path::new("src/engine/model.rs")
}

#[test]
fn each_type_name_exists_once() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, text) in sources("src") {
        if is_unshipped(&path) {
            continue;
        }
        for name in types(&shipped(&plain(&text))) {
            places.entry(name.to_owned()).or_default().push(path.display().to_string());
        }
    }
    assert!(places.len() > 300, "{} types", places.len());
    places.retain(|_, files| files.len() > 1);
    let lines: Vec<_> = places.iter().map(|(name, files)| format!("{name}: {files:?}")).collect();
    assert!(lines.is_empty(), "a type name exists more than once:\n{}", lines.join("\n"));
}

#[test]
fn types_are_found_without_associated_ones() {
    let code = "pub struct A<T>(T); enum B { C } type D = A<u8>;\n\
        impl Iterator for B { type Item = u8; fn f() -> impl E { struct F; } }\n\
        trait G { type H; }\npub type I = u8; let type_name = 1;";
    assert_eq!(types(code), ["A", "B", "D", "F", "G", "I"]);
}
