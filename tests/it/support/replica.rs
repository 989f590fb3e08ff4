//! A replica that follows a script, byte by byte if needed.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::{PATIENCE, wait_until};

/// A received request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// The request target, unchanged.
    pub target: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    pub at: Instant,
    /// The replica has applied it.
    pub applied: bool,
}

impl Seen {
    /// The key as a node decodes it.
    pub fn key(&self) -> String {
        let path = self.target.split('?').next().unwrap();
        let segment = path.rsplit('/').next().unwrap();
        percent_encoding::percent_decode_str(segment).decode_utf8().unwrap().into_owned()
    }

    pub fn sequence(&self) -> u64 {
        self.headers["x-replication-sequence"].parse().unwrap()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// The reaction to a request.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Apply it and answer 200, or 404 to the DELETE of a missing key.
    Apply,
    /// Apply it after a delay.
    ApplyAfter(Duration),
    /// Apply it when the gate opens.
    ApplyBehind(Gate),
    /// Never answer, and apply it when the gate opens, even if the connection is closed by then.
    ApplyLate(Gate),
    /// Apply it and reset the connection instead of answering.
    ApplyAndReset,
    /// Answer with a status, an optional header line and a body; do not apply it.
    Answer(u16, &'static str, &'static str),
    /// Never answer.
    Hang,
    /// Reset the connection.
    Reset,
    /// Answer with bytes that are not HTTP.
    Garbage,
    /// Answer 200, one byte per second.
    Trickle,
    /// Answer 200 with a body that never ends.
    Endless,
    /// Answer with `100 Continue` for ever.
    EndlessInterim,
}

/// A test opens it at a chosen moment. Unlike a delay, it does not depend on the speed of the
/// machine.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Notify>);

impl Gate {
    /// Opens it for all current and later waiters.
    pub fn open(&self) {
        self.0.notify_one();
    }

    async fn pass(&self) {
        self.0.notified().await;
        // Wake the next waiter.
        self.0.notify_one();
    }
}

type Script = Arc<dyn Fn(&Seen) -> Behaviour + Send + Sync>;

#[derive(Default)]
struct State {
    data: BTreeMap<String, (u64, Vec<u8>)>,
    log: Vec<Seen>,
    /// The connections, so that they can be reset.
    connections: Vec<AbortHandle>,
    accepted: usize,
    in_progress: usize,
    most_in_progress: usize,
}

/// A node with its data and a record of every request.
pub struct Replica {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    script: Arc<Mutex<Script>>,
    accepting: Mutex<Option<AbortHandle>>,
    /// Bound but not listening, so that no other process gets the port while it is stopped.
    _port: TcpSocket,
}

/// A socket on an address that other sockets of this process may share.
fn socket(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Replica {
    /// A replica that applies every request.
    pub async fn start() -> Self {
        Self::with(|_| Behaviour::Apply).await
    }

    /// A replica that follows `script`.
    pub async fn with(script: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static) -> Self {
        let port = socket("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = port.local_addr().unwrap();
        let listener = socket(address).unwrap().listen(1024).unwrap();
        let replica = Self {
            address,
            _port: port,
            state: Arc::default(),
            script: Arc::new(Mutex::new(Arc::new(script))),
            accepting: Mutex::new(None),
        };
        replica.accept(listener);
        replica
    }

    pub fn behave(&self, script: impl Fn(&Seen) -> Behaviour + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Takes it off the network: connections are reset, new ones refused. Its data stays.
    pub fn stop(&self) {
        if let Some(accepting) = self.accepting.lock().unwrap().take() {
            accepting.abort();
        }
        for connection in self.state.lock().unwrap().connections.drain(..) {
            connection.abort();
        }
    }

    /// Brings it back on the same port.
    pub async fn come_back(&self) {
        // The old listener is closed when its task ends. Until then it would receive connections.
        let refused = || async { TcpStream::connect(self.address).await.is_err().then_some(()) };
        wait_until("the listener is closed", refused).await;
        self.accept(socket(self.address).unwrap().listen(1024).unwrap());
    }

    /// Every request in the order of arrival.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().log.clone()
    }

    /// Clears its record and its data. Only for a replica without requests in progress.
    pub fn forget(&self) {
        let mut state = self.state.lock().unwrap();
        state.log.clear();
        state.data.clear();
    }

    /// Its data.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().data.get(key).map(|(_, value)| value.clone())
    }

    pub fn data(&self) -> BTreeMap<String, (u64, Vec<u8>)> {
        self.state.lock().unwrap().data.clone()
    }

    pub fn connections_accepted(&self) -> usize {
        self.state.lock().unwrap().accepted
    }

    pub fn most_in_progress(&self) -> usize {
        self.state.lock().unwrap().most_in_progress
    }

    /// Waits until it holds `value` for `key`.
    pub async fn until_holds(&self, key: &str, value: &str) {
        wait_until(&format!("{key} is {value:?}"), || async {
            (self.get(key).as_deref() == Some(value.as_bytes())).then_some(())
        })
        .await;
    }

    /// Waits until it has received a request for `key` and holds no value for it.
    pub async fn until_gone(&self, key: &str) {
        wait_until(&format!("{key} is gone"), || async {
            let deleted = self.seen().iter().any(|seen| seen.applied && seen.method == "DELETE");
            (deleted && self.get(key).is_none()).then_some(())
        })
        .await;
    }

    /// Waits until there is no connection, so that everything sent has been read. Only for when no
    /// client connects any more.
    pub async fn until_quiet(&self) {
        // Connections that are not accepted yet are in the queue before this one.
        if let Ok(mut last) = TcpStream::connect(self.address).await {
            let _ = last.shutdown().await;
            let closed = tokio::time::timeout(PATIENCE, last.read(&mut [0])).await;
            let _ = closed.expect("the replica should have closed the connection");
        }
        wait_until("no client is connected", || async {
            let state = self.state.lock().unwrap();
            state.connections.iter().all(AbortHandle::is_finished).then_some(())
        })
        .await;
    }

    /// Waits until `count` requests have arrived.
    pub async fn until_seen(&self, count: usize) {
        wait_until(&format!("{count} requests have come"), || async {
            (self.state.lock().unwrap().log.len() >= count).then_some(())
        })
        .await;
    }

    fn accept(&self, listener: TcpListener) {
        let (state, script) = (Arc::clone(&self.state), Arc::clone(&self.script));
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    continue;
                };
                stream.set_nodelay(true).unwrap();
                let connection = serve(stream, Arc::clone(&state), Arc::clone(&script));
                let handle = tokio::spawn(connection).abort_handle();
                let mut state = state.lock().unwrap();
                state.accepted += 1;
                state.connections.retain(|connection| !connection.is_finished());
                state.connections.push(handle);
            }
        });
        *self.accepting.lock().unwrap() = Some(accepting.abort_handle());
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Counts a request in progress, also if its connection is reset.
struct Busy<'a>(&'a Mutex<State>);

impl<'a> Busy<'a> {
    fn new(state: &'a Mutex<State>) -> Self {
        let mut locked = state.lock().unwrap();
        locked.in_progress += 1;
        locked.most_in_progress = locked.most_in_progress.max(locked.in_progress);
        Self(state)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap().in_progress -= 1;
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>, script: Arc<Mutex<Script>>) {
    let mut stream = BufReader::new(stream);
    while let Some(seen) = read_request(&mut stream).await {
        let _busy = Busy::new(&state);
        let behaviour = {
            let script = Arc::clone(&*script.lock().unwrap());
            script(&seen)
        };
        let nothing = std::future::pending::<()>();
        let at = {
            let mut state = state.lock().unwrap();
            state.log.push(seen.clone());
            state.log.len() - 1
        };
        let apply = || apply(&mut state.lock().unwrap(), at);
        let answer = match behaviour {
            Behaviour::Apply => plain(apply(), "", ""),
            Behaviour::ApplyAfter(time) => {
                tokio::time::sleep(time).await;
                plain(apply(), "", "")
            }
            Behaviour::ApplyBehind(gate) => {
                gate.pass().await;
                plain(apply(), "", "")
            }
            Behaviour::ApplyLate(gate) => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    gate.pass().await;
                    self::apply(&mut state.lock().unwrap(), at);
                });
                return nothing.await;
            }
            Behaviour::ApplyAndReset => {
                apply();
                return reset(&stream);
            }
            Behaviour::Answer(status, header, body) => plain(status, header, body),
            Behaviour::Hang => return nothing.await,
            Behaviour::Reset => return reset(&stream),
            Behaviour::Garbage => "\u{0}\u{1}\u{2} what? \r\n\r\n".to_owned(),
            Behaviour::Trickle => {
                for byte in plain(200, "", "").bytes() {
                    if stream.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                continue;
            }
            Behaviour::EndlessInterim => {
                let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1024);
                while stream.write_all(interim.as_bytes()).await.is_ok() {}
                return;
            }
            Behaviour::Endless => {
                let head = "HTTP/1.1 500 no\r\ntransfer-encoding: chunked\r\n\r\n";
                let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
                let _ = stream.write_all(head.as_bytes()).await;
                while stream.write_all(chunk.as_bytes()).await.is_ok() {}
                return;
            }
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Closing with unread data or lingering zero makes the peer see a reset.
#[allow(deprecated, reason = "a reset is what is wanted, and zero does not block")]
fn reset(stream: &BufReader<TcpStream>) {
    let _ = stream.get_ref().set_linger(Some(Duration::ZERO));
}

fn plain(status: u16, header: &str, body: &str) -> String {
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    format!("HTTP/1.1 {status} x\r\n{header}content-length: {}\r\n\r\n{body}", body.len())
}

fn apply(state: &mut State, at: usize) -> u16 {
    state.log[at].applied = true;
    let seen = state.log[at].clone();
    if seen.method == "PUT" {
        state.data.insert(seen.key(), (seen.sequence(), seen.body));
        return 200;
    }
    if state.data.remove(&seen.key()).is_some() { 200 } else { 404 }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Seen { method, target, headers, body, at: Instant::now(), applied: false })
}
