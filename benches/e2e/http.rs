//! Just enough HTTP/1.1 for a load generator and a null replica.

/// The length of the first request in `held` once it is complete, and whether it is a GET.
pub fn whole_request(held: &[u8]) -> Option<(usize, bool)> {
    let head = held.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let length = content_length(&held[..head]);
    (held.len() >= head + length).then(|| (head + length, held.starts_with(b"GET")))
}

pub fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).unwrap();
    let field = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    field.unwrap_or(0)
}
