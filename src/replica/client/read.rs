//! Reads a value back from a node, to compare it: `GET {node}/store/{key}`.

use std::pin::pin;

use bytes::Bytes;
use hyper::Response;
use hyper::header::AUTHORIZATION;
use ring::digest::{Context, SHA256};

use super::{MAX_BODY_BYTES, ReplicaClient, SLOWEST, body};
use crate::policy::Target;
use crate::replica::causes::Unanswered;
use crate::replica::connection::ReceivedBody;
use crate::replica::patience::{AttemptLimits, Patience};
use crate::replica::request;
use crate::task::Node;

/// A value as a node returned it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadValue {
    /// SHA-256.
    pub digest: [u8; 32],
    pub length: u64,
    /// The value itself, if it was asked for.
    pub value: Option<Bytes>,
}

/// The bytes of a value that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueLimit {
    pub bytes: usize,
    /// Whether to return the value, and not only its hash.
    pub keeps: bool,
}

impl ReplicaClient {
    /// Reads the value of a key; `None` if the node has none. The same policy, certificates and
    /// tokens apply as for deliveries, and `request_timeout` limits the whole read. Over HTTP/2 at
    /// most 64 KiB are read, because a connection there is shared with deliveries.
    ///
    /// # Errors
    ///
    /// Why the node has not returned the value.
    pub async fn read(
        &self,
        node: &Node,
        key: &str,
        limit: ValueLimit,
    ) -> Result<Option<ReadValue>, String> {
        let target = Target::of(node).and_then(|target| {
            self.policy.admit_target(&target)?;
            Ok(target)
        });
        let target = target.map_err(|forbidden| format!("not asked: the node {forbidden}"))?;
        let live = self.live.load_full();
        let limits = AttemptLimits { silence: self.settings.request_timeout, slowest: SLOWEST };
        let mut patience = Patience::new(limits);
        let mut kept = live.pools.take(node);
        let mut response = None;
        while response.is_none() {
            let mut request = request::read(node, key)
                .map_err(|error| format!("cannot build the request: {error}"))?;
            if let Some(token) = live.tokens.of(node) {
                request.headers_mut().insert(AUTHORIZATION, token.clone());
            }
            let kept = kept.take();
            // The node may have closed a kept connection because it was idle.
            let may_repeat = kept.is_some();
            let exchange = pin!(async {
                let mut connection = match kept {
                    Some(connection) => connection,
                    None => Box::pin(live.pools.connect(node, &target)).await?,
                };
                Ok::<_, Unanswered>((connection.send(request, None).await?, connection))
            });
            match patience.until(exchange).await {
                Some(Ok(answered)) => response = Some(answered),
                Some(Err(why)) if may_repeat && why.is_silent_end() => {}
                Some(Err(why)) => {
                    let verdict = self.without_answer(&why, &target);
                    return Err(verdict.error().map_or_else(String::new, ToString::to_string));
                }
                None => return Err(patience.exceeded()),
            }
        }
        let Some((mut response, connection)) = response else { return Err(String::new()) };
        let status = response.status();
        // Dropping the connection of an answer that was not read to its end closes it.
        let is_whole;
        let read = if status.is_success() {
            let value = value(&mut response, &mut patience, limit).await;
            is_whole = value.is_ok();
            value.map(Some)
        } else {
            is_whole = body(&mut response, &mut patience).await.1;
            match status.as_u16() {
                404 => Ok(None),
                _ => Err(format!("the node answered the read with {status}")),
            }
        };
        if is_whole {
            live.pools.keep_when_free(node, connection).await;
        }
        read
    }
}

async fn value(
    response: &mut Response<ReceivedBody>,
    patience: &mut Patience,
    limit: ValueLimit,
) -> Result<ReadValue, String> {
    let most = match response.body() {
        ReceivedBody::Http1(_) => limit.bytes,
        ReceivedBody::Http2(_) => limit.bytes.min(MAX_BODY_BYTES),
    };
    let (mut hash, mut length, mut kept) = (Context::new(&SHA256), 0_usize, Vec::new());
    loop {
        match patience.until(pin!(response.body_mut().chunk())).await {
            Some(Some(Ok(chunk))) => {
                length = length.saturating_add(chunk.len());
                if length > most {
                    return Err(format!("the value is longer than {most} bytes"));
                }
                hash.update(&chunk);
                if limit.keeps {
                    kept.extend_from_slice(&chunk);
                }
            }
            Some(None) => break,
            Some(Some(Err(()))) => return Err("the answer broke off".to_owned()),
            None => return Err(patience.exceeded()),
        }
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    let value = limit.keeps.then(|| Bytes::from(kept));
    Ok(ReadValue { digest, length: length as u64, value })
}
