//! Server-sent events out of the parts that arrive: the fields `event` and `data`, the only ones
//! that anything here needs.

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Its kind; `message` where none is given.
    pub(super) kind: String,
    /// Its lines, joined.
    pub(super) data: String,
}

/// What has arrived and is no whole event yet.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    kind: String,
    data: Option<String>,
    /// The last byte was a carriage return: a line feed after it belongs to it.
    returned: bool,
}

/// An event longer than any that there is: the other side speaks something else.
#[derive(Debug)]
pub(super) struct TooLong;

/// The figures of a thousand replicas with the longest addresses are below two mebibytes.
const MAX_EVENT_BYTES: usize = 16 << 20;

impl Parser {
    /// Takes a part in, and gives the events that it completes.
    pub(super) fn push(&mut self, part: &[u8]) -> Result<Vec<Event>, TooLong> {
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
        let kept = self.line.len() + self.data.as_ref().map_or(0, String::len);
        if kept > MAX_EVENT_BYTES { Err(TooLong) } else { Ok(events) }
    }

    fn end_of_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let kind = std::mem::take(&mut self.kind);
            let kind = if kind.is_empty() { "message".to_owned() } else { kind };
            return self.data.take().map(|data| Event { kind, data });
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
            // A comment, which keeps the connection alive, or a field that is of no use here.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, data: &str) -> Event {
        Event { kind: kind.to_owned(), data: data.to_owned() }
    }

    #[test]
    fn events_are_found_wherever_the_parts_are_cut() {
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
    fn what_never_ends_is_given_up() {
        let mut parser = Parser::default();
        let part = vec![b'x'; MAX_EVENT_BYTES];
        assert!(parser.push(&part).is_ok());
        assert!(parser.push(b"x").is_err());
    }
}
