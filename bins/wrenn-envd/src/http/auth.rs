//! Who asks: the token that opens the agent, and the user a request means.

use std::hint::black_box;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, Response, StatusCode, header::AUTHORIZATION};

use super::{Body, Reply};
use crate::agent::Agent;

/// The header that carries the token `/init` set.
pub const TOKEN_HEADER: &str = "x-access-token";

/// Whether the request carries the token, where one is set.
pub fn allowed(agent: &Agent, headers: &HeaderMap) -> bool {
    match &agent.defaults().token {
        Some(token) => {
            headers.get(TOKEN_HEADER).is_some_and(|given| same(given.as_bytes(), token.as_bytes()))
        }
        None => true,
    }
}

pub fn refusal() -> Response<Body> {
    Reply::new(StatusCode::UNAUTHORIZED, "X-Access-Token is missing or wrong").into_response()
}

/// Compares in a time that tells nothing but the length.
pub fn same(given: &[u8], wanted: &[u8]) -> bool {
    let differences = given.iter().zip(wanted).fold(0, |all, (a, b)| black_box(all | (a ^ b)));
    given.len() == wanted.len() && differences == 0
}

/// The user name of Basic authorisation. Its password is not used: the token decides who may ask.
pub fn basic_user(headers: &HeaderMap) -> Option<String> {
    let (scheme, credentials) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let decoded =
        STANDARD.decode(credentials.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let decoded = String::from_utf8(decoded).ok()?;
    let name = decoded.split_once(':').map_or(decoded.as_str(), |(name, _)| name);
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_token_is_the_same() {
        assert!(same(b"secret", b"secret"));
        for other in ["", "secre", "secret1", "Secret", "secres"] {
            assert!(!same(other.as_bytes(), b"secret"), "{other}");
        }
    }

    #[test]
    fn the_user_is_the_name_before_the_colon() {
        let user = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            basic_user(&headers)
        };
        assert_eq!(user("Basic dXNlcjo="), Some("user".into())); // user:
        assert_eq!(user("basic dXNlcjpwYXNz"), Some("user".into())); // user:pass
        assert_eq!(user("Basic dXNlcg=="), Some("user".into())); // user
        for none in ["Basic Og==", "Basic !", "Bearer dXNlcjo=", "Basic", "Basic /w=="] {
            assert_eq!(user(none), None, "{none}");
        }
    }
}
