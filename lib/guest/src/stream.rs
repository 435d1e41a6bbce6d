//! Connect's streaming envelopes: one byte of flags, four of length (big-endian), the message.

use std::io::{self, Read};

use serde_json::Value;

use crate::Error;

/// The flag of the last envelope, which says how the stream ended.
const END: u8 = 2;
/// A message longer than this is not the agent's: it cuts output into pieces far smaller.
const LIMIT: u32 = 16 * 1024 * 1024;

/// One message in its envelope.
pub(crate) fn wrap(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let mut bytes = Vec::with_capacity(5 + text.len());
    bytes.push(0);
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.into_bytes());
    bytes
}

/// The next message of a stream; `None` at its proper end.
pub(crate) fn next(what: &'static str, stream: &mut impl Read) -> Result<Option<Value>, Error> {
    let broken = |source: io::Error| Error::Broken { what, source };
    let strange = |why: String| Error::Protocol { what, why };
    let mut head = [0; 5];
    stream.read_exact(&mut head).map_err(broken)?;
    let [flags, length @ ..] = head;
    let length = u32::from_be_bytes(length);
    if length > LIMIT {
        return Err(strange(format!("a message of {length} bytes")));
    }
    if flags & !END != 0 {
        return Err(strange(format!("flags {flags:#04x}")));
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes).map_err(broken)?;
    let empty = flags == END && bytes.is_empty();
    let message: Value = if empty {
        Value::Null
    } else {
        serde_json::from_slice(&bytes).map_err(|error| strange(error.to_string()))?
    };
    if flags != END {
        return Ok(Some(message));
    }
    match message.get("error").filter(|error| !error.is_null()) {
        None => Ok(None),
        Some(error) => {
            let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            let status = text("code");
            Err(Error::Refused { what, not_found: status == "not_found", status, message: text("message") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_stream_of_messages_ends_with_its_end_message() {
        let mut bytes = wrap(&json!({"a": 1}));
        assert_eq!(&bytes[..5], [0, 0, 0, 0, 7]);
        bytes.extend([2, 0, 0, 0, 2, b'{', b'}']);
        let mut stream = &bytes[..];
        assert_eq!(next("t", &mut stream).unwrap(), Some(json!({"a": 1})));
        assert_eq!(next("t", &mut stream).unwrap(), None);
    }

    #[test]
    fn an_error_at_the_end_is_an_error() {
        let text = r#"{"error":{"code":"not_found","message":"no such user"}}"#;
        let mut bytes = vec![2, 0, 0, 0, text.len() as u8];
        bytes.extend(text.bytes());
        let error = next("t", &mut &bytes[..]).unwrap_err();
        assert!(matches!(error, Error::Refused { not_found: true, .. }), "{error}");
    }

    #[test]
    fn a_stream_that_is_cut_short_or_strange_is_refused() {
        for bytes in [
            &[][..],
            &[0, 0, 0],
            &[0, 0, 0, 0, 2, b'{'],
            &[1, 0, 0, 0, 2, b'{', b'}'],
            &[0, 255, 0, 0, 0],
            &[0, 0, 0, 0, 1, b'{'],
        ] {
            assert!(next("t", &mut &bytes[..]).is_err(), "{bytes:?}");
        }
    }
}
