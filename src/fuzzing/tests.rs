//! Runs every target over its corpus and over mutations of it: the same ones in every run, and some
//! random ones.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{TARGETS, run};

/// Inputs of each kind for each target.
const CASES: u32 = 1500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = root().join("fuzz/corpus").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(&dir).expect(target).map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// An input that `Debug` shows as text.
#[derive(Clone)]
struct Data(Vec<u8>);

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    Repeat(Index, Index),
    /// Appends the end of another input of the corpus.
    Splice(Index, Vec<u8>, Index),
}

impl Edit {
    fn apply(&self, data: &mut Vec<u8>) {
        let place = |at: &Index, data: &[u8]| at.index(data.len() + 1);
        match self {
            Self::Set(at, byte) if !data.is_empty() => {
                let at = at.index(data.len());
                data[at] = *byte;
            }
            Self::Set(_, byte) => data.push(*byte),
            Self::Insert(at, bytes) => {
                let at = place(at, data);
                data.splice(at..at, bytes.iter().copied());
            }
            Self::Remove(from, length) => {
                let from = place(from, data);
                let length = length.index(data.len() - from + 1);
                data.drain(from..from + length);
            }
            Self::Repeat(from, length) => {
                let from = place(from, data);
                let length = length.index((data.len() - from + 1).min(32));
                let part = data[from..from + length].to_vec();
                data.splice(from..from, part);
            }
            Self::Splice(at, other, from) => {
                data.truncate(place(at, data));
                data.extend_from_slice(&other[place(from, other)..]);
            }
        }
    }
}

fn inputs(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Data> {
    let byte =
        || prop_oneof![any::<u8>(), select(b"\"\\{}[]:,.-/@?#% \n\t\0\x7f\xff09azAZ".to_vec())];
    let edit = prop_oneof![
        3 => (any::<Index>(), byte()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (any::<Index>(), vec(byte(), 1..9)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        2 => any::<(Index, Index)>().prop_map(|(from, length)| Edit::Remove(from, length)),
        1 => any::<(Index, Index)>().prop_map(|(from, length)| Edit::Repeat(from, length)),
        1 => (any::<Index>(), select(corpus.clone()), any::<Index>())
            .prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
    ];
    let changed = (select(corpus), vec(edit, 1..7)).prop_map(|(mut data, edits)| {
        edits.iter().for_each(|edit| edit.apply(&mut data));
        data
    });
    prop_oneof![4 => changed, 1 => vec(byte(), 0..400)].prop_map(Data)
}

/// Runs the target over all inputs. A failing input is shrunk before it is reported.
#[track_caller]
fn holds(target: &str) {
    let corpus = corpus(target);
    for (path, data) in &corpus {
        let held = std::panic::catch_unwind(|| run(target, data));
        assert!(held.is_ok(), "{} fails", path.display());
    }
    let inputs = inputs(corpus.into_iter().map(|(_, data)| data).collect());
    for deterministic in [true, false] {
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let mut runner = if deterministic {
            TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
        } else {
            TestRunner::new(config)
        };
        let outcome = runner.run(&inputs, |data: Data| {
            run(target, &data.0);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("target {target} fails: {error}");
        }
    }
}

#[test]
fn any_answer_has_the_verdict_of_the_table_and_an_error_without_the_write() {
    holds("answer");
}

#[test]
fn any_batch_is_split_into_its_writes() {
    holds("batch");
}

#[test]
fn any_body_is_a_write_within_the_limits_or_is_rejected_without_naming_its_value() {
    holds("body");
}

#[test]
fn any_history_keeps_order_and_counters_and_converges() {
    holds("engine");
}

#[test]
fn any_line_of_an_import_is_rejected_or_exported_unchanged() {
    holds("import");
}

#[test]
fn any_address_has_one_normal_form_with_the_same_destination() {
    holds("node");
}

#[test]
fn any_request_of_an_operator_is_parsed_exactly_or_rejected_with_one_sentence() {
    holds("operator");
}

#[test]
fn any_address_is_judged_by_its_destination_and_blocked_addresses_are_rejected_under_any_rules() {
    holds("policy");
}

#[test]
fn any_key_and_address_make_a_request_for_that_key_to_that_node() {
    holds("request");
}

#[test]
fn any_row_is_read_back_and_changed_or_arbitrary_bytes_are_rejected() {
    holds("rows");
}

#[test]
fn any_list_of_tokens_survives_a_rewrite_and_no_error_contains_a_token() {
    holds("tokens");
}

#[test]
fn any_accepted_trace_can_be_forwarded() {
    holds("trace");
}

#[test]
fn any_ttl_is_parsed_by_go_exact_to_the_nanosecond() {
    holds("ttl");
}

#[test]
fn every_target_is_tested_here_and_fuzzed_over_a_small_corpus() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    let here = include_str!("tests.rs");
    let mut files: Vec<_> = fs::read_dir(root().join("fuzz/fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    assert_eq!(files, TARGETS.map(|(name, _)| name.to_owned()));
    for name in files {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        assert!(here.contains(&format!("holds(\"{name}\");")), "{name}");
        let path = root().join(format!("fuzz/fuzz_targets/{name}.rs"));
        assert!(fs::read_to_string(path).unwrap().contains(&format!("fuzz(\"{name}\", data)")));
        let corpus = corpus(&name);
        let bytes: usize = corpus.iter().map(|(_, data)| data.len()).sum();
        assert!(corpus.len() >= 10 && bytes < 64 << 10, "{name}: {} in {bytes}", corpus.len());
    }
}
