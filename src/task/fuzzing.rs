//! Node addresses from arbitrary text.

#![allow(clippy::panic, reason = "that is how a target says what does not hold")]

use url::Url;

use super::{MAX_NODE_BYTES, Node};

/// A normal form is stable, leads to the same host as the text, and can be extended by a path.
pub(crate) fn node(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let node = match Node::parse(text) {
        Ok(node) => node,
        Err(why) => {
            let why = why.to_string();
            assert!(why.len() < MAX_NODE_BYTES + 200, "a long error: {why}");
            assert!(!why.contains(char::is_control), "{why:?}");
            return;
        }
    };
    let normal = node.as_str();
    assert!(normal.len() <= MAX_NODE_BYTES, "{} bytes", normal.len());
    assert_eq!(Node::parse(normal).ok().as_ref(), Some(&node), "{text:?}");
    assert!(normal.bytes().all(|byte| byte.is_ascii_graphic()), "{normal:?}");
    assert!(!normal.ends_with('/') && !normal.contains(['?', '#', '\\']), "{normal:?}");
    let Some((scheme, rest)) = normal.split_once("://") else { panic!("{normal:?}") };
    assert!(matches!(scheme, "http" | "https"), "{normal:?}");
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    assert!(!authority.is_empty() && !authority.contains('@'), "{normal:?}");
    assert_eq!(authority, authority.to_ascii_lowercase(), "{normal:?}");
    let steps = path.split('/').any(|segment| matches!(segment, "." | ".."));
    assert!(!steps, "{normal:?} has a step in its path");

    // How the client's URL parser reads the text, its normal form and a request.
    let request = format!("{normal}/store/k%2Fe%3Fy");
    let read = |text: &str| match Url::parse(text) {
        Ok(url) => url,
        Err(why) => panic!("{text:?} {why}"),
    };
    let (spelled, plain, request) = (read(text), read(normal), read(&request));
    for url in [&plain, &request] {
        let place = |url: &Url| (url.scheme().to_owned(), url.host().map(|host| host.to_owned()));
        assert_eq!(place(url), place(&spelled), "{text:?}");
        assert_eq!(url.port_or_known_default(), spelled.port_or_known_default(), "{text:?}");
        assert!(url.username().is_empty() && url.password().is_none(), "{text:?}");
    }
    assert_eq!(request.path(), format!("{path}/store/k%2Fe%3Fy"), "{text:?}");
    assert_eq!((request.query(), request.fragment()), (None, None), "{text:?}");

    // Other spellings of the same node.
    let shouted = normal.replacen("http", "HTTP", 1);
    for other in [format!("{normal}/"), format!("{normal}//"), shouted] {
        if other.len() <= MAX_NODE_BYTES {
            match Node::parse(&other) {
                Ok(same) => assert_eq!(same, node, "{other:?}"),
                Err(why) => panic!("{other:?} {why}"),
            }
        }
    }
}
