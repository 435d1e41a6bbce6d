//! HTTP/1.1 as Firecracker speaks it: a length with every body, no chunks, the connection kept.

use serde_json::{Value, json};

/// Bytes of a request's head at most.
const HEAD_LIMIT: usize = 16 << 10;
/// Bytes of a body at most: Firecracker's limit.
const BODY_LIMIT: usize = 51_200;

/// A request.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// As it was sent.
    pub method: String,
    /// As it was sent, without a query.
    pub path: String,
    /// Empty where there is none.
    pub body: Vec<u8>,
}

/// An answer.
#[derive(Debug, PartialEq)]
pub struct Response {
    /// 200, 204, 400 or 503.
    pub status: u16,
    /// JSON.
    pub body: Option<String>,
}

impl Response {
    /// Something went wrong.
    pub fn fault(status: u16, message: &str) -> Self {
        Self { status, body: Some(json!({"fault_message": message}).to_string()) }
    }

    /// It went well.
    pub fn answer(value: Option<&Value>) -> Self {
        Self { status: if value.is_some() { 200 } else { 204 }, body: value.map(Value::to_string) }
    }

    /// As it goes out.
    pub fn bytes(&self) -> Vec<u8> {
        let mut text =
            format!("HTTP/1.1 {} \r\nServer: wrenn-vmm\r\nConnection: keep-alive\r\n", self.status);
        if let Some(body) = &self.body {
            let length = body.len();
            text.push_str(&format!(
                "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            ));
        } else {
            text.push_str("\r\n");
        }
        text.into_bytes()
    }
}

/// The first request that is complete in these bytes, and how many bytes it takes. `None` while there is none.
///
/// # Errors
/// What is wrong with it, in a word to the client. What follows makes no sense then.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let head = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_LIMIT => length,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_LIMIT => return Ok(None),
        Ok(_) => return Err(format!("The request's head is larger than {HEAD_LIMIT} bytes.")),
        Err(error) => return Err(format!("The request is not HTTP: {error}.")),
    };
    let mut length = 0;
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("Transfer-Encoding is not supported: send a Content-Length.".into());
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).unwrap_or_default();
            length = text.trim().parse().map_err(|_| format!("Content-Length is {text:?}."))?;
        }
    }
    if length > BODY_LIMIT {
        return Err(format!("The request's body is larger than {BODY_LIMIT} bytes."));
    }
    let end = head + length;
    let Some(body) = bytes.get(head..end) else { return Ok(None) };
    let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
    let mut path = text(request.path);
    path.truncate(path.find('?').unwrap_or(path.len()));
    Ok(Some((Request { method: text(request.method), path, body: body.into() }, end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_any_pieces_are_the_same_requests() {
        let bytes = b"PUT /a?b HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}GET / HTTP/1.1\r\n\r\n";
        for cut in 0..41 {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut}");
        }
        let (request, used) = parse(bytes).unwrap().unwrap();
        assert_eq!(request, Request { method: "PUT".into(), path: "/a".into(), body: b"{}".into() });
        let (request, rest) = parse(&bytes[used..]).unwrap().unwrap();
        assert_eq!(request, Request { method: "GET".into(), path: "/".into(), body: vec![] });
        assert_eq!(used + rest, bytes.len());
    }

    #[test]
    fn what_is_not_http_or_too_large_is_refused() {
        for (bytes, expected) in [
            (&b"SSH-2.0\r\n\r\n"[..], "The request is not HTTP"),
            (b"PUT / HTTP/1.1\r\nContent-Length: 51201\r\n\r\n", "The request's body is larger"),
            (b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "Content-Length is \"-1\"."),
            (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding is not"),
        ] {
            let said = parse(bytes).unwrap_err();
            assert!(said.starts_with(expected), "{said}");
        }
        let mut endless = b"GET / HTTP/1.1\r\nX: ".to_vec();
        endless.resize(HEAD_LIMIT + 1, b'x');
        assert!(parse(&endless).unwrap_err().starts_with("The request's head is larger"));
    }

    #[test]
    fn an_answer_has_a_length_if_it_has_a_body() {
        let bytes = Response::fault(400, "no \"no\"").bytes();
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 \r\n"), "{text}");
        assert!(
            text.ends_with("\r\nContent-Length: 29\r\n\r\n{\"fault_message\":\"no \\\"no\\\"\"}"),
            "{text}"
        );
        let text = String::from_utf8(Response::answer(None).bytes()).unwrap();
        assert!(text.starts_with("HTTP/1.1 204 \r\n") && text.ends_with("\r\n\r\n"), "{text}");
        assert!(!text.contains("Content-Length"), "{text}");
    }
}
