//! What the clients, and the hosts of their replicas, hold of the shared pools.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use slab::Slab;

use crate::engine::Moment;
use crate::share::Held;
use crate::task::{Client, Node};

/// The places of a pool that are reserved for others are given up when there were none for this
/// long.
pub(super) const OTHERS_IDLE: Duration = Duration::from_secs(60);

/// A pool that claimants share. A task counts once for its client, and once for the host of each
/// replica that it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Queue,
    Strong,
    Bytes,
    Retries,
    LetterBytes,
}

type Amounts = [u64; 5];

/// A client for longer than its number is in use: a hash of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ClientId(pub(super) u64);

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// `None` is the client of all writes whose client is not known.
    clients: Claimants<Option<Client>>,
    /// By host and port: a replica with many base paths is one claimant.
    hosts: Claimants<Box<str>>,
    /// What a client holds at a host. Without empty entries.
    pairs: HashMap<(u32, u32), Amounts>,
    recent: RecentClients,
}

impl Claims {
    /// The number of a client, until [`Self::leave_client`].
    pub(super) fn join_client(&mut self, client: Option<&Client>) -> u32 {
        self.clients.join(client.cloned())
    }

    pub(super) fn client_id(&self, client: u32) -> ClientId {
        let name = &self.clients.entries[client as usize].name;
        ClientId(self.clients.by_name.hasher().hash_one(name))
    }

    pub(super) fn leave_client(&mut self, client: u32) {
        self.clients.leave(client);
    }

    /// The number of clients that hold something, or opened a lane.
    pub(super) fn clients(&self) -> usize {
        self.clients.entries.len()
    }

    /// The number of the host of a replica, until [`Self::leave_host`].
    pub(super) fn join_host(&mut self, node: &Node) -> u32 {
        self.hosts.join(node.host_and_port().into())
    }

    pub(super) fn leave_host(&mut self, host: u32) {
        self.hosts.leave(host);
    }

    pub(super) fn find_client(&self, client: Option<&Client>) -> Option<u32> {
        self.clients.by_name.get(&client.cloned()).copied()
    }

    pub(super) fn find_host(&self, node: &Node) -> Option<u32> {
        self.hosts.by_name.get(&*node.host_and_port()).copied()
    }

    pub(super) fn by_client(&mut self, pool: impl Into<Option<Pool>>, client: u32, change: i64) {
        let Some(pool) = pool.into() else { return };
        add(self.clients.amounts(client), pool, change);
    }

    /// The change of one task at one replica.
    pub(super) fn at_host(
        &mut self,
        pool: impl Into<Option<Pool>>,
        client: u32,
        host: u32,
        change: i64,
    ) {
        let Some(pool) = pool.into() else { return };
        add(self.hosts.amounts(host), pool, change);
        let pair = self.pairs.entry((client, host)).or_default();
        add(pair, pool, change);
        if *pair == Amounts::default() {
            self.pairs.remove(&(client, host));
        }
    }

    /// `None` for a claimant that holds nothing yet.
    pub(super) fn held(
        &self,
        pool: impl Into<Option<Pool>>,
        client: Option<u32>,
        host: Option<u32>,
    ) -> Held {
        let Some(pool) = pool.into() else { return Held::default() };
        let of = |amounts: &Amounts| amounts[pool as usize];
        let pair = client.zip(host).and_then(|pair| self.pairs.get(&pair));
        Held {
            client: client.map_or(0, |client| of(&self.clients.entries[client as usize].amounts)),
            host: host.map_or(0, |host| of(&self.hosts.entries[host as usize].amounts)),
            pair: pair.map_or(0, of),
        }
    }

    /// The number of known hosts.
    pub(super) fn hosts(&self) -> usize {
        self.hosts.entries.len()
    }

    pub(super) fn note_write(&mut self, client: Option<&Client>, now: Moment) {
        self.recent.note(client, now);
    }

    /// Whether no other client wrote for a while. The holder of a token is never alone: the other
    /// tokens may be used at any time.
    pub(super) fn is_alone(&self, client: Option<&Client>, now: Moment) -> bool {
        !matches!(client, Some(Client::Token(_)))
            && self.recent.other_than(client).is_none_or(|at| at < now.before(OTHERS_IDLE))
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Claims {
    /// All that is held: by pool, client and host.
    pub(super) fn amounts(
        &self,
    ) -> std::collections::BTreeMap<(usize, Option<u32>, Option<u32>), u64> {
        let number = |key: usize| Some(u32::try_from(key).unwrap_or(u32::MAX));
        let clients = self.clients.entries.iter().map(|(at, of)| ((number(at), None), of.amounts));
        let hosts = self.hosts.entries.iter().map(|(at, of)| ((None, number(at)), of.amounts));
        let pairs = self.pairs.iter().map(|(&(of, at), held)| ((Some(of), Some(at)), *held));
        let all = clients.chain(hosts).chain(pairs);
        let each = all.flat_map(|((client, host), amounts)| {
            (0..).zip(amounts).map(move |(pool, held)| ((pool, client, host), held))
        });
        each.filter(|&(_, held)| held > 0).collect()
    }
}

fn add(amounts: &mut Amounts, pool: Pool, change: i64) {
    let amount = &mut amounts[pool as usize];
    debug_assert!(amount.checked_add_signed(change).is_some(), "{pool:?} has less than {change}");
    *amount = amount.saturating_add_signed(change);
}

#[derive(Debug)]
struct Claimants<T> {
    entries: Slab<ClaimEntry<T>>,
    by_name: HashMap<T, u32>,
}

#[derive(Debug)]
struct ClaimEntry<T> {
    name: T,
    /// Tasks, reservations or lanes that know its number.
    users: usize,
    amounts: Amounts,
}

impl<T> Default for Claimants<T> {
    fn default() -> Self {
        Self { entries: Slab::new(), by_name: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Claimants<T> {
    fn join(&mut self, name: T) -> u32 {
        let number = *self.by_name.entry(name).or_insert_with_key(|name| {
            let claimant = ClaimEntry { name: name.clone(), users: 0, amounts: Amounts::default() };
            u32::try_from(self.entries.insert(claimant)).unwrap_or(u32::MAX)
        });
        self.entries[number as usize].users += 1;
        number
    }

    fn leave(&mut self, number: u32) {
        let claimant = &mut self.entries[number as usize];
        claimant.users -= 1;
        if claimant.users == 0 {
            debug_assert_eq!(claimant.amounts, Amounts::default(), "it left and holds something");
            let gone = self.entries.remove(number as usize);
            self.by_name.remove(&gone.name);
        }
    }

    fn amounts(&mut self, number: u32) -> &mut Amounts {
        &mut self.entries[number as usize].amounts
    }
}

/// When the last client wrote, and when the last other one did.
#[derive(Debug, Default)]
struct RecentClients {
    last: Option<(Option<Client>, Moment)>,
    before: Option<Moment>,
}

impl RecentClients {
    fn note(&mut self, client: Option<&Client>, now: Moment) {
        match &mut self.last {
            Some((last, at)) if last.as_ref() == client => *at = now,
            last => {
                if let Some((_, at)) = last.replace((client.cloned(), now)) {
                    self.before = Some(at);
                }
            }
        }
    }

    fn other_than(&self, client: Option<&Client>) -> Option<Moment> {
        match &self.last {
            Some((last, at)) if last.as_ref() != client => Some(*at),
            _ => self.before,
        }
    }
}
