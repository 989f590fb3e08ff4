//! A disk with a volatile cache: makes from a record what a power cut could leave.
//!
//! Synced data is kept. Since the last sync, each page of 4 KiB and the length of a file may have any
//! of their states, and any of the changes to the names of a directory may be kept. A rename is atomic.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use fastrand::Rng;

use super::record::Entry;

pub const PAGE: usize = 4096;

/// A file with its bytes, or a directory. [`Disk`] has the names.
#[derive(Default)]
struct Node<'a> {
    is_dir: bool,
    stable: Vec<u8>,
    current: Vec<u8>,
    /// Changes since the last sync.
    changes: Vec<Change<'a>>,
}

#[derive(Clone, Copy)]
enum Change<'a> {
    Write(usize, &'a [u8]),
    Size(usize),
}

type Id = usize;
/// A name in a directory.
type Place = (Id, String);
/// One atomic change of names.
type Naming = Vec<(Place, Option<Id>)>;

const ROOT: Id = 0;

/// How much of the unsynced data an image keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Luck {
    Nothing,
    Everything,
    Some,
}

impl Luck {
    fn of(self, rng: &mut Rng) -> Self {
        match self {
            Self::Some => match rng.u8(..8) {
                0..2 => Self::Nothing,
                2..4 => Self::Everything,
                _ => Self::Some,
            },
            sure => sure,
        }
    }
}

/// The disk at one point of a record.
pub struct Disk<'a> {
    root: String,
    nodes: Vec<Node<'a>>,
    by_inode: HashMap<u64, Id>,
    current: BTreeMap<Place, Id>,
    stable: BTreeMap<Place, Id>,
    /// Changes since the last sync of one of their directories.
    namings: Vec<Naming>,
}

impl<'a> Disk<'a> {
    /// An empty directory that is already durable.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_str().unwrap().to_owned(),
            nodes: vec![Node { is_dir: true, ..Node::default() }],
            by_inode: HashMap::new(),
            current: BTreeMap::new(),
            stable: BTreeMap::new(),
            namings: Vec::new(),
        }
    }

    /// Applies the next entry of the record.
    pub fn apply(&mut self, entry: &Entry<'a>) {
        let at = usize::try_from(entry.offset).unwrap();
        match entry.kind {
            b'C' | b'D' => {
                let node = self.nodes.len();
                let is_dir = entry.kind == b'D';
                if is_dir && entry.path == self.root {
                    self.by_inode.insert(entry.inode, ROOT);
                    return;
                }
                self.nodes.push(Node { is_dir, ..Node::default() });
                self.by_inode.insert(entry.inode, node);
                self.name(vec![(self.place(entry.path), Some(node))]);
            }
            b'U' => self.name(vec![(self.place(entry.path), None)]),
            b'R' => {
                let (from, to) = (self.place(entry.path), self.place(entry.to));
                let node = self.current[&from];
                self.name(vec![(from, None), (to, Some(node))]);
            }
            b'W' => self.change(entry.inode, Change::Write(at, entry.data)),
            b'T' => self.change(entry.inode, Change::Size(at)),
            b'F' => self.sync(entry.inode),
            // A sync that failed promises nothing.
            b'E' => {}
            kind => panic!("unexpected entry kind {kind}"),
        }
    }

    fn place(&self, path: &str) -> Place {
        let path = path.strip_prefix(&self.root).unwrap();
        let mut steps: Vec<_> = path.split('/').filter(|step| !step.is_empty()).collect();
        let name = steps.pop().unwrap().to_owned();
        let dir = steps.iter().fold(ROOT, |dir, &step| self.current[&(dir, step.to_owned())]);
        (dir, name)
    }

    fn name(&mut self, naming: Naming) {
        rename(&mut self.current, &naming);
        self.namings.push(naming);
    }

    fn change(&mut self, inode: u64, change: Change<'a>) {
        let node = &mut self.nodes[self.by_inode[&inode]];
        change.apply(&mut node.current);
        node.changes.push(change);
    }

    fn sync(&mut self, inode: u64) {
        let id = self.by_inode[&inode];
        let node = &mut self.nodes[id];
        if !node.is_dir {
            for change in node.changes.drain(..) {
                change.apply(&mut node.stable);
            }
            return;
        }
        let stable = &mut self.stable;
        self.namings.retain(|naming| {
            let is_in = naming.iter().any(|((dir, _), _)| *dir == id);
            if is_in {
                rename(stable, naming);
            }
            !is_in
        });
    }

    /// Creates the directory as a power cut could leave it now.
    pub fn image(&self, luck: Luck, rng: &mut Rng, into: &Path) {
        fs::create_dir_all(into).unwrap();
        let names = self.names(luck.of(rng), rng);
        self.fill(ROOT, &names, luck, rng, into);
    }

    fn names(&self, luck: Luck, rng: &mut Rng) -> BTreeMap<Place, Id> {
        let mut names = self.stable.clone();
        let in_order = rng.bool().then(|| rng.usize(..=self.namings.len()));
        for (n, naming) in self.namings.iter().enumerate() {
            let happens = match luck {
                Luck::Nothing => false,
                Luck::Everything => true,
                Luck::Some => in_order.map_or_else(|| rng.bool(), |until| n < until),
            };
            if happens {
                rename(&mut names, naming);
            }
        }
        names
    }

    fn fill(&self, dir: Id, names: &BTreeMap<Place, Id>, luck: Luck, rng: &mut Rng, into: &Path) {
        for ((_, name), &id) in names.range((dir, String::new())..(dir + 1, String::new())) {
            let (node, path) = (&self.nodes[id], into.join(name));
            if node.is_dir {
                fs::create_dir(&path).unwrap();
                self.fill(id, names, luck, rng, &path);
            } else {
                fs::write(&path, node.image(luck.of(rng), rng)).unwrap();
            }
        }
    }
}

fn rename(names: &mut BTreeMap<Place, Id>, naming: &Naming) {
    for (place, node) in naming {
        match node {
            Some(node) => names.insert(place.clone(), *node),
            None => names.remove(place),
        };
    }
}

impl Node<'_> {
    fn image(&self, luck: Luck, rng: &mut Rng) -> Vec<u8> {
        match luck {
            Luck::Nothing => self.stable.clone(),
            Luck::Everything => self.current.clone(),
            Luck::Some if rng.u8(..4) == 0 => {
                let mut bytes = self.stable.clone();
                let until = rng.usize(..=self.changes.len());
                self.changes[..until].iter().for_each(|change| change.apply(&mut bytes));
                bytes
            }
            Luck::Some => self.pages(rng),
        }
    }

    /// Each page and the length in a random state since the last sync.
    fn pages(&self, rng: &mut Rng) -> Vec<u8> {
        let mut sizes = vec![self.stable.len()];
        for change in &self.changes {
            sizes.push(change.size(sizes[sizes.len() - 1]));
        }
        let longest = *sizes.iter().max().unwrap();
        let all = self.changes.len();
        let until: Vec<_> = (0..longest.div_ceil(PAGE))
            .map(|_| match rng.u8(..3) {
                0 => 0,
                1 => all,
                _ => rng.usize(..=all),
            })
            .collect();
        let mut bytes = self.stable.clone();
        bytes.resize(longest, 0);
        for (n, change) in self.changes.iter().enumerate() {
            let (from, to) = match change {
                Change::Write(at, data) => (*at, at + data.len()),
                Change::Size(size) => (*size, longest),
            };
            let mut at = from;
            while at < to {
                let end = to.min((at / PAGE + 1) * PAGE);
                if n < until[at / PAGE] {
                    match change {
                        Change::Write(begin, data) => {
                            bytes[at..end].copy_from_slice(&data[at - begin..end - begin]);
                        }
                        Change::Size(_) => bytes[at..end].fill(0),
                    }
                }
                at = end;
            }
        }
        bytes.truncate(sizes[rng.usize(..sizes.len())]);
        bytes
    }
}

impl Change<'_> {
    fn size(self, before: usize) -> usize {
        match self {
            Self::Write(at, data) => before.max(at + data.len()),
            Self::Size(size) => size,
        }
    }

    fn apply(self, bytes: &mut Vec<u8>) {
        bytes.resize(self.size(bytes.len()), 0);
        if let Self::Write(at, data) = self {
            bytes[at..at + data.len()].copy_from_slice(data);
        }
    }
}

/// All files below a directory with their contents.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.insert(format!("{name}/"), Vec::new());
            let below = files(&entry.path());
            found.extend(below.into_iter().map(|(path, bytes)| (format!("{name}/{path}"), bytes)));
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    found
}
