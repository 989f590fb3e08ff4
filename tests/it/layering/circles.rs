//! The import graph of the parts, from the paths in the source, has no circles.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{is_test, sources};

/// A part of the crate, by the first name of its path.
type Part = String;

/// For each part the parts that it names, each with a file that names it.
type Graph = BTreeMap<Part, BTreeMap<Part, String>>;

#[test]
fn no_import_circles_between_the_parts_of_the_crate() {
    let mut graph = Graph::new();
    for (path, text) in sources("src") {
        if is_test(&path) || path.ends_with("main.rs") || path.ends_with("lib.rs") {
            continue;
        }
        let module = module(&path);
        for used in paths(&tokens(&shipped(&plain(&text))), &module) {
            if let Some(part) = used.first().filter(|part| **part != module[0]) {
                let of = graph.entry(module[0].clone()).or_default();
                of.entry(part.clone()).or_insert_with(|| path.display().to_string());
            }
        }
    }
    let edges: usize = graph.values().map(BTreeMap::len).sum();
    assert!(edges > 40, "only {edges} imports were found between the parts");
    if let Some(circle) = circle(&graph) {
        panic!("the parts import each other in a circle:\n{circle}");
    }
}

#[test]
fn a_circle_is_found_and_named() {
    let text = "use crate::b::{self, C};\n#[cfg(test)]\nmod tests {\n use crate::t::T;\n}\n\
        // crate::c\nfn f() { crate::d::f(\"crate::s\"); super::super::e::f(); }\n\
        pub(in crate::v) fn g(_: &'static str) {}";
    let module = ["a", "x"].map(String::from);
    let used = paths(&tokens(&shipped(&plain(text))), &module);
    let joined: Vec<_> = used.iter().map(|path| path.join("::")).collect();
    assert_eq!(joined, ["b", "b::C", "d::f", "e::f"]);
    let mut graph = Graph::new();
    let mut name = |from: &str, to: &str| {
        graph.entry(from.into()).or_default().insert(to.into(), format!("src/{from}.rs"))
    };
    for (from, to) in [("a", "b"), ("b", "c"), ("c", "d")] {
        name(from, to);
    }
    assert_eq!(circle(&graph), None);
    graph.entry("c".into()).or_default().insert("a".into(), "src/c.rs".into());
    let found = circle(&graph).unwrap();
    assert_eq!(found, "a names b (src/a.rs)\nb names c (src/b.rs)\nc names a (src/c.rs)");
}

/// `src/store/local/rows.rs` is `store`, `local`, `rows`.
fn module(path: &Path) -> Vec<String> {
    let path = path.strip_prefix("src").unwrap().with_extension("");
    path.components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect()
}

/// The text without comments and without the content of strings and characters.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            string(rest)
        } else {
            // A character, not a lifetime.
            let escaped = rest.starts_with("'\\");
            let end = rest.char_indices().nth(2).filter(|(_, third)| *third == '\'');
            match (first, end) {
                ('\'', _) if escaped => rest[3..].find('\'').map_or(rest.len(), |at| at + 4),
                ('\'', Some((at, _))) => at + 1,
                _ => 0,
            }
        };
        if skipped == 0 {
            plain.push(first);
        }
        rest = &rest[skipped.max(first.len_utf8())..];
    }
    plain
}

fn raw_string(text: &str) -> Option<usize> {
    let body = text.strip_prefix('r').or_else(|| text.strip_prefix("br"))?;
    let hashes = body.len() - body.trim_start_matches('#').len();
    let inside = body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &body[..hashes]);
    let before = text.len() - inside.len();
    Some(inside.find(&end).map_or(text.len(), |at| before + at + end.len()))
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// The code without the items for tests and fuzzing.
pub fn shipped(code: &str) -> String {
    let mut shipped = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(") {
        let (before, attribute) = rest.split_at(at);
        shipped.push_str(before);
        let length = attribute.find(']').unwrap() + 1;
        let condition = &attribute[..length];
        let for_tests = condition.contains("test") || condition.contains("feature");
        if for_tests && !condition.contains("not(") {
            rest = &attribute[item(attribute)..];
        } else {
            shipped.push_str(condition);
            rest = &attribute[length..];
        }
    }
    shipped + rest
}

/// The length of an item: up to its semicolon, or to the end of its braces.
fn item(code: &str) -> usize {
    let mut depth = 0;
    for (at, character) in code.char_indices() {
        match character {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 && (character == '}' || character == ';') {
            return at + 1;
        }
    }
    code.len()
}

pub fn tokens(code: &str) -> Vec<&str> {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    let mut tokens = vec![];
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if is_name(first) {
            rest.find(|character| !is_name(character)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

/// All paths of the crate that the code names, from the crate root.
fn paths(tokens: &[&str], module: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (at, token) in tokens.iter().enumerate() {
        let begins = ["crate", "super", "self"].contains(token)
            && tokens.get(at + 1) == Some(&"::")
            && (at == 0 || tokens[at - 1] != "::");
        let visibility = at > 1 && tokens[at - 2..at] == ["(", "in"];
        if begins && !visibility {
            tree(&tokens[at..], module, &mut found);
        }
    }
    found
}

/// Reads a path and its branches after `prefix`; returns its number of tokens.
fn tree(tokens: &[&str], prefix: &[String], found: &mut BTreeSet<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match *token {
            "crate" => path.clear(),
            "super" => drop(path.pop()),
            "self" => {}
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at += match tokens[at] {
                        "," => 1,
                        // An alias.
                        "as" => 2,
                        _ => tree(&tokens[at..], &path, found).max(1),
                    };
                }
                return at + 1;
            }
            name if name.starts_with(|first: char| first.is_alphabetic() || first == '_') => {
                path.push(name.to_owned());
            }
            // The end of a list, or a glob.
            _ => break,
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    found.insert(path);
    at
}

/// A circle, if there is one, with the files that form it.
fn circle(graph: &Graph) -> Option<String> {
    let mut done = BTreeSet::new();
    graph.keys().find_map(|part| walk(graph, part, &mut vec![], &mut done))
}

fn walk<'a>(
    graph: &'a Graph,
    part: &'a str,
    way: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(begin) = way.iter().position(|before| *before == part) {
        let mut circle = way[begin..].to_vec();
        circle.push(part);
        let line =
            |pair: &[&str]| format!("{} names {} ({})", pair[0], pair[1], graph[pair[0]][pair[1]]);
        return Some(circle.windows(2).map(line).collect::<Vec<_>>().join("\n"));
    }
    if !done.contains(part) {
        way.push(part);
        let named = graph.get(part).into_iter().flat_map(BTreeMap::keys);
        let found = named.into_iter().find_map(|next| walk(graph, next, way, done));
        if found.is_some() {
            return found;
        }
        way.pop();
        done.insert(part);
    }
    None
}
