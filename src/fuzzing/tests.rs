//! Every target, over its corpus and over what can be made of it at random: always the same inputs,
//! and each time some others.

use std::path::{Path, PathBuf};
use std::{fmt, fs};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{TARGETS, run};

/// Inputs of each kind for each target. What takes days is for the fuzzer.
const CASES: u32 = 1500;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of a corpus, by name.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = root().join("fuzz/corpus").join(target);
    let mut paths: Vec<_> =
        fs::read_dir(&dir).expect(target).map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// An input that is shown as text.
#[derive(Clone)]
struct Data(Vec<u8>);

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// A change to an input.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    Repeat(Index, Index),
    /// The end of another one from the corpus.
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

/// Runs the target over everything. What fails is told as small as it can be made.
#[track_caller]
fn holds(target: &str) {
    let corpus = corpus(target);
    for (path, data) in &corpus {
        let held = std::panic::catch_unwind(|| run(target, data));
        assert!(held.is_ok(), "{} does not hold", path.display());
    }
    let inputs = inputs(corpus.into_iter().map(|(_, data)| data).collect());
    for algorithm in ["the same", "others"] {
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let mut runner = match algorithm {
            "the same" => {
                TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
            }
            _ => TestRunner::new(config),
        };
        let outcome = runner.run(&inputs, |data: Data| {
            run(target, &data.0);
            Ok(())
        });
        if let Err(error) = outcome {
            panic!("{target} does not hold: {error}");
        }
    }
}

#[test]
fn whatever_a_replica_answers_has_the_verdict_of_the_table_and_tells_nothing_of_the_write() {
    holds("answer");
}

#[test]
fn any_batch_comes_apart_into_the_writes_that_stand_in_it() {
    holds("batch");
}

#[test]
fn any_body_is_a_write_that_keeps_its_limits_or_is_refused_in_a_sentence_without_its_value() {
    holds("body");
}

#[test]
fn any_history_made_of_bytes_keeps_the_order_and_the_books_and_converges() {
    holds("engine");
}

#[test]
fn any_line_of_an_import_is_refused_or_written_again_as_the_same() {
    holds("import");
}

#[test]
fn any_address_has_one_normal_form_that_leads_where_it_leads() {
    holds("node");
}

#[test]
fn whatever_an_operator_asks_is_read_as_it_stands_there_or_refused_in_a_sentence() {
    holds("operator");
}

#[test]
fn under_any_rules_an_address_is_judged_by_where_it_leads_and_what_never_is_a_replica_is_refused() {
    holds("policy");
}

#[test]
fn any_key_for_any_address_is_a_request_to_that_node_and_that_key() {
    holds("request");
}

#[test]
fn any_bytes_are_no_row_and_any_row_comes_back_and_a_changed_one_does_not() {
    holds("rows");
}

#[test]
fn any_list_of_tokens_says_the_same_when_it_is_written_again_and_no_error_tells_a_token() {
    holds("tokens");
}

#[test]
fn any_trace_that_is_taken_can_be_sent_on() {
    holds("trace");
}

#[test]
fn any_ttl_is_read_back_by_go_to_the_nanosecond() {
    holds("ttl");
}

#[test]
fn every_target_is_run_here_and_by_the_fuzzer_over_a_small_corpus() {
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
        assert!(fs::read_to_string(path).unwrap().contains(&format!("run(\"{name}\", data)")));
        let corpus = corpus(&name);
        let bytes: usize = corpus.iter().map(|(_, data)| data.len()).sum();
        assert!(corpus.len() >= 10 && bytes < 64 << 10, "{name}: {} in {bytes}", corpus.len());
    }
}
