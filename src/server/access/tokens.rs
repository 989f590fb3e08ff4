//! The token list in use, which a reload replaces.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use crate::access::{Holder, TokenList};
use crate::clock::wall_clock;

/// The wall clock may be set, so the expiry of a token is looked at this often.
const MOST_SLEEP: Duration = Duration::from_secs(60);

/// Clones share the list.
#[derive(Clone, Debug)]
pub struct Tokens(Arc<ReloadableList>);

#[derive(Debug)]
struct ReloadableList {
    list: ArcSwap<TokenList>,
    replaced: watch::Sender<()>,
}

impl Tokens {
    pub fn new(list: TokenList) -> Self {
        let (replaced, _) = watch::channel(());
        Self(Arc::new(ReloadableList { list: ArcSwap::from_pointee(list), replaced }))
    }

    pub fn list(&self) -> Guard<Arc<TokenList>> {
        self.0.list.load()
    }

    /// Puts a new list in force. The tokens that did not change keep the state of their rate limit.
    pub fn replace(&self, mut list: TokenList) {
        list.take_over(&self.list());
        self.0.list.store(Arc::new(list));
        self.0.replaced.send_replace(());
    }

    /// Resolves when the token has expired, is no longer in the list, or its grant has changed.
    pub(super) async fn revoked(&self, holder: &Arc<Holder>) {
        // Before the first look, so that no replacement is missed.
        let mut replaced = self.0.replaced.subscribe();
        while self.list().holds(holder) && !holder.grant.has_expired(wall_clock()) {
            let left = holder.grant.time_left(wall_clock());
            let look = left.map_or(MOST_SLEEP, |left| left.min(MOST_SLEEP));
            // The sender lives as long as `self`.
            let _ = tokio::time::timeout(look, replaced.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt;

    use super::*;
    use crate::access::{Grant, NewToken, Role};
    use crate::task::Quota;

    fn line(name: &str, token: &NewToken, roles: Vec<Role>) -> String {
        let (replicas, rate, expires, quota) = (None, None, None, Quota::default());
        let grant = Grant { name: name.into(), roles, replicas, rate, expires, quota };
        grant.line(&token.stored().unwrap()) + "\n"
    }

    fn list(lines: &[String]) -> TokenList {
        TokenList::parse(&lines.concat(), Path::new("tokens")).unwrap()
    }

    #[tokio::test]
    async fn a_token_is_revoked_when_it_is_removed_or_its_grant_changes() {
        let (a, b) = (NewToken::make().unwrap(), NewToken::make().unwrap());
        let lines = [line("a", &a, vec![Role::Observe]), line("b", &b, vec![Role::Observe])];
        let tokens = Tokens::new(list(&lines));
        let holder = |token: &NewToken| Arc::clone(tokens.list().find(token.reveal()).unwrap());
        let (first, second) = (holder(&a), holder(&b));
        let mut removed = Box::pin(tokens.revoked(&first));
        let mut changed = Box::pin(tokens.revoked(&second));
        assert!((&mut removed).now_or_never().is_none());
        assert!((&mut changed).now_or_never().is_none());
        tokens.replace(list(&lines));
        assert!((&mut removed).now_or_never().is_none());
        tokens.replace(list(&lines[1..]));
        removed.await;
        assert!((&mut changed).now_or_never().is_none());
        tokens.replace(list(&[line("b", &b, vec![Role::Replicate])]));
        changed.await;
        tokens.revoked(&first).await;
    }
}
