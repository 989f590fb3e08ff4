//! Replica addresses in normal form, so that two spellings of a node are one node.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use url::{ParseError, Url};

/// Maximum length of an address. The default limit of a replica list is 64 of these.
pub const MAX_NODE_BYTES: usize = 1024;

/// The base URL of a node: `http` or `https`, a host, an optional port and base path.
///
/// Scheme and host are lower case; a default port and trailing slashes are dropped. Request paths
/// are appended to it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Node(Arc<str>);

impl TryFrom<String> for Node {
    type Error = NodeError;

    fn try_from(text: String) -> Result<Self, NodeError> {
        Self::parse(&text)
    }
}

impl From<Node> for String {
    fn from(node: Node) -> Self {
        node.as_str().to_owned()
    }
}

impl Node {
    /// Parses and normalises an address.
    pub fn parse(text: &str) -> Result<Self, NodeError> {
        if text.len() > MAX_NODE_BYTES {
            return Err(NodeError::TooLong { bytes: text.len() });
        }
        // The URL parser drops these silently, so two texts that look different would be one node.
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(NodeError::Space);
        }
        let url = Url::parse(text).map_err(|source| match source {
            ParseError::RelativeUrlWithoutBase => NodeError::Scheme,
            source => NodeError::Syntax { source },
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(NodeError::Scheme);
        }
        // Checks the text too: `http://@h` parses to an empty user name.
        let authority = text.split_once("//").map_or("", |(_, rest)| rest);
        let authority = authority.split(['/', '\\', '?', '#']).next().unwrap_or_default();
        // Checks the parsed form too: `http:u@h` and `http:///u@h` have user info.
        let named = !url.username().is_empty() || url.password().is_some();
        if named || authority.contains('@') {
            return Err(NodeError::UserInfo);
        }
        if url.query().is_some() {
            return Err(NodeError::Query);
        }
        if url.fragment().is_some() {
            return Err(NodeError::Fragment);
        }
        let normal = url.as_str().trim_end_matches('/');
        if normal.len() > MAX_NODE_BYTES {
            return Err(NodeError::TooLong { bytes: normal.len() });
        }
        Ok(Self(normal.into()))
    }

    /// Takes a normal form from disk without parsing it; a checksum covers it. Stricter rules of a
    /// later version must not make a data directory unreadable.
    #[must_use]
    pub fn from_normal(text: &str) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The claimant of limits that replicas share: neither scheme nor base path make another one.
    pub fn host_and_port(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("", &self.0));
        let authority = rest.split('/').next().unwrap_or_default();
        let has_port = authority.rsplit(':').next().is_some_and(|port| {
            port.len() < authority.len() && port.bytes().all(|byte| byte.is_ascii_digit())
        });
        match (has_port, scheme) {
            (true, _) => authority.to_owned(),
            (false, "https") => format!("{authority}:443"),
            (false, _) => format!("{authority}:80"),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a node address. Continues "`{text}` …" without quoting it, because in a token
/// file the text may be a secret.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error("is {bytes} bytes long, the limit is {MAX_NODE_BYTES}")]
    TooLong { bytes: usize },
    #[error("must not contain white space or control characters")]
    Space,
    #[error("is not a URL: {source}")]
    Syntax { source: ParseError },
    #[error("must begin with http:// or https://")]
    Scheme,
    #[error("must not contain user info (user:password@)")]
    UserInfo,
    #[error("must not contain a query (?…)")]
    Query,
    #[error("must not contain a fragment (#…)")]
    Fragment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn same(a: &str, b: &str) {
        assert_eq!(Node::parse(a).unwrap(), Node::parse(b).unwrap(), "{a} and {b}");
    }

    #[test]
    fn spellings_of_one_node_are_one_node() {
        same("http://h:80", "http://h");
        same("https://h:443/", "https://h");
        same("HTTP://Node.Example/", "http://node.example");
        same("http://h/p/", "http://h/p");
        same("http://h/p//", "http://h/p");
    }

    #[test]
    fn a_base_path_and_its_case_are_kept() {
        assert_eq!(Node::parse("http://h:81/P/q/").unwrap().as_str(), "http://h:81/P/q");
    }

    #[test]
    fn base_paths_and_schemes_of_one_port_have_one_claimant() {
        for (text, expected) in [
            ("http://h", "h:80"),
            ("http://h/base/path", "h:80"),
            ("https://h:80/x", "h:80"),
            ("https://h", "h:443"),
            ("http://h:8083", "h:8083"),
            ("http://[::1]/x", "[::1]:80"),
            ("http://[::1]:8083/x", "[::1]:8083"),
        ] {
            assert_eq!(Node::parse(text).unwrap().host_and_port(), expected, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn the_normal_form_of_a_normal_form_is_itself(
            text in "(http|https|HTTP)://[a-zA-Z0-9.%-]{1,12}(:[0-9]{1,5})?(/[!-~]{0,12}){0,3}",
        ) {
            if let Ok(node) = Node::parse(&text) {
                proptest::prop_assert_eq!(Node::parse(node.as_str()).unwrap(), node);
            }
        }
    }

    #[test]
    fn an_invalid_base_url_is_refused_with_the_reason() {
        let said = |text: &str| Node::parse(text).unwrap_err().to_string();
        let rule = "must begin with http:// or https://";
        // URL parsers find the scheme `localhost` in the third.
        for text in ["", "ftp://h", "localhost:8083", "127.0.0.1:80", "h", "//h", "u:secret@h"] {
            assert_eq!(said(text), rule, "{text}");
        }
        assert!(said("http://").contains("not a URL"));
        assert!(said("http://u:p@h").contains("user info"));
        assert!(said("http://@h").contains("user info"));
        for odd in ["http:u@h", "http:///u:p@h/p", "http:\\\\u@h", "http:/u@h"] {
            assert!(said(odd).contains("user info"), "{odd}");
        }
        assert!(said("http://h?x").contains("query"));
        assert!(said("http://h#x").contains("fragment"));
        assert!(said("http://h /").contains("white space"));
        assert!(said(&format!("http://h/{}", "p".repeat(2_000))).contains("the limit is 1024"));
    }
}
