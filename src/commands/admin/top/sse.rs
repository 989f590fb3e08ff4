//! Incremental parser of server-sent events: the fields `event` and `data`.

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SseEvent {
    /// `message` by default.
    pub(super) kind: String,
    pub(super) data: String,
}

#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    kind: String,
    data: Option<String>,
    /// The last byte was a carriage return: a line feed after it is part of the same line end.
    returned: bool,
}

/// The event exceeds [`MAX_EVENT_BYTES`]: the other side does not speak this protocol.
#[derive(Debug)]
pub(super) struct TooLong;

/// The figures of 1000 replicas with the longest addresses take less than 2 MiB.
const MAX_EVENT_BYTES: usize = 16 << 20;

impl Parser {
    /// Returns the events that `part` completes.
    pub(super) fn push(&mut self, part: &[u8]) -> Result<Vec<SseEvent>, TooLong> {
        let mut events = Vec::new();
        for byte in part {
            let after_return = std::mem::replace(&mut self.returned, *byte == b'\r');
            match byte {
                b'\n' if after_return => {}
                b'\n' | b'\r' => {
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_of_line(&String::from_utf8_lossy(&line)));
                }
                byte => self.line.push(*byte),
            }
        }
        let buffered = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if buffered > MAX_EVENT_BYTES { Err(TooLong) } else { Ok(events) }
    }

    fn end_of_line(&mut self, line: &str) -> Option<SseEvent> {
        if line.is_empty() {
            let kind = std::mem::take(&mut self.kind);
            let kind = if kind.is_empty() { "message".to_owned() } else { kind };
            return self.data.take().map(|data| SseEvent { kind, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match (field, &mut self.data) {
            ("event", _) => value.clone_into(&mut self.kind),
            ("data", None) => self.data = Some(value.to_owned()),
            ("data", Some(data)) => {
                data.push('\n');
                data.push_str(value);
            }
            // A comment (keep-alive) or another field.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, data: &str) -> SseEvent {
        SseEvent { kind: kind.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_are_parsed_wherever_the_parts_are_split() {
        let text = b": hello\n\nid: 7\nevent: figures\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\nevent: left\n";
        let expected = [event("figures", "{\"a\":1}"), event("message", "x\ny")];
        assert_eq!(Parser::default().push(text).unwrap(), expected);
        for at in 0..text.len() {
            let mut parser = Parser::default();
            let mut events = parser.push(&text[..at]).unwrap();
            events.extend(parser.push(&text[at..]).unwrap());
            assert_eq!(events, expected, "cut at {at}");
        }
    }

    #[test]
    fn an_event_that_is_too_long_is_an_error() {
        let mut parser = Parser::default();
        let part = vec![b'x'; MAX_EVENT_BYTES];
        assert!(parser.push(&part).is_ok());
        assert!(parser.push(b"x").is_err());
    }
}
