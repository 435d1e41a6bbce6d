//! The agent as an HTTP peer.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;
use ureq::http::Response;
use ureq::{Body, SendBody};
use wire::Document;

use crate::vm::Vm;
use crate::{Error, PORT};

/// How long the agent may take to accept a connection: it is one hop away, on this host.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a short call may take in all. A guest under emulation is slow.
const CALL: Duration = Duration::from_secs(30);
/// Error texts longer than this are not the agent's.
const MESSAGE_LIMIT: u64 = 64 * 1024;

/// A guest's agent.
#[derive(Debug, Clone)]
pub struct Agent {
    url: String,
    token: Option<String>,
    http: ureq::Agent,
    vm: Option<Arc<Vm>>,
}

impl Agent {
    /// The agent of this document: `guest.url`, or port 49983 of `net.host_ip`.
    ///
    /// # Errors
    /// `invalid` when neither is there or the URL is none.
    pub fn of(document: &Document) -> Result<Self, wire::Error> {
        let url = match document.find::<String>("guest.url")? {
            Some(url) => url,
            None => match document.find::<String>("net.host_ip")? {
                Some(address) => format!("http://{address}:{PORT}"),
                None => return Err(Error::NoUrl.into()),
            },
        };
        let url = url.trim_end_matches('/').to_owned();
        let host =
            url.strip_prefix("http://").filter(|host| !host.is_empty() && !host.contains(['/', ' ', '?']));
        if host.is_none() || url.parse::<ureq::http::Uri>().is_err() {
            return Err(Error::BadUrl { url }.into());
        }
        // The answer's status is looked at here, and the host's own proxy settings are no business of a guest's.
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT))
            .build();
        Ok(Self { url, token: document.find("guest.token")?, http: config.into(), vm: Vm::of(document)? })
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The VM it lives in, where that is known.
    pub(crate) fn vm(&self) -> Option<&Vm> {
        self.vm.as_deref()
    }

    /// Asks whether the agent is there, for at most `limit`. Gives its version, if it tells one.
    pub(crate) fn health(&self, limit: Duration) -> Result<Option<String>, Box<ureq::Error>> {
        let call = self.http.get(format!("{}/health", self.url)).config().timeout_global(Some(limit)).build();
        let mut response = call.call().map_err(Box::new)?;
        if !response.status().is_success() {
            return Err(Box::new(ureq::Error::StatusCode(response.status().as_u16())));
        }
        let text =
            response.body_mut().with_config().limit(MESSAGE_LIMIT).read_to_string().unwrap_or_default();
        let version = serde_json::from_str::<Value>(&text).ok();
        Ok(version.and_then(|body| body.get("version")?.as_str().map(str::to_owned)))
    }

    /// A short call with a JSON body, answered by JSON or by nothing. It ends with the VM.
    pub(crate) fn post(
        &self,
        what: &'static str,
        path: &str,
        user: Option<&str>,
        body: &Value,
    ) -> Result<Value, Error> {
        self.watch(what)?;
        let call = self.dress(self.http.post(format!("{}{path}", self.url)), user);
        let call =
            call.header("content-type", "application/json").config().timeout_global(Some(CALL)).build();
        let response = call.send(body.to_string()).map_err(|error| self.failed(what, error))?;
        self.json(what, response)
    }

    /// A short call without a body, answered by JSON or by nothing. It ends with the VM.
    pub(crate) fn get(&self, what: &'static str, path: &str) -> Result<Value, Error> {
        self.watch(what)?;
        let call = self.dress(self.http.get(format!("{}{path}", self.url)), None);
        let response = call.config().timeout_global(Some(CALL)).build().call();
        self.json(what, response.map_err(|error| self.failed(what, error))?)
    }

    /// A call whose answer is read as it comes, with no limit of time but the VM's end.
    pub(crate) fn stream(
        &self,
        what: &'static str,
        path: &str,
        user: Option<&str>,
        content_type: &str,
        body: SendBody,
    ) -> Result<Response<Body>, Error> {
        self.watch(what)?;
        let call = self.dress(self.http.post(format!("{}{path}", self.url)), user);
        let response =
            call.header("content-type", content_type).send(body).map_err(|error| self.failed(what, error))?;
        self.accepted(what, response)
    }

    /// A download.
    pub(crate) fn download(
        &self,
        what: &'static str,
        path: &str,
        user: Option<&str>,
    ) -> Result<Response<Body>, Error> {
        self.watch(what)?;
        let call = self.dress(self.http.get(format!("{}{path}", self.url)), user);
        self.accepted(what, call.call().map_err(|error| self.failed(what, error))?)
    }

    fn dress<B>(&self, call: ureq::RequestBuilder<B>, user: Option<&str>) -> ureq::RequestBuilder<B> {
        let call = match &self.token {
            Some(token) => call.header("x-access-token", token),
            None => call,
        };
        match user {
            Some(user) => {
                call.header("authorization", format!("Basic {}", BASE64.encode(format!("{user}:"))))
            }
            None => call,
        }
    }

    fn watch(&self, what: &'static str) -> Result<(), Error> {
        let watched = self.vm.as_ref().map_or(Ok(()), |vm| vm.watch(&self.http));
        watched.map_err(|source| Error::Broken { what, source })
    }

    fn failed(&self, what: &'static str, error: ureq::Error) -> Error {
        self.explained(Error::Call { what, url: self.url.clone(), source: Box::new(error) })
    }

    /// The failure of a connection, or what is behind it: the end of the VM.
    pub(crate) fn explained(&self, error: Error) -> Error {
        match (&self.vm, &error) {
            (Some(vm), Error::Call { what, .. } | Error::Broken { what, .. }) if vm.has_ended() => {
                Error::VmEnded { pid: vm.pid(), what }
            }
            _ => error,
        }
    }

    fn accepted(&self, what: &'static str, mut response: Response<Body>) -> Result<Response<Body>, Error> {
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text =
            response.body_mut().with_config().limit(MESSAGE_LIMIT).read_to_string().unwrap_or_default();
        let body = serde_json::from_str::<Value>(&text).unwrap_or_default();
        let code = body.get("code").and_then(Value::as_str).map(str::to_owned);
        let message = body.get("message").and_then(Value::as_str).map_or(text, str::to_owned);
        let not_found = status.as_u16() == 404 || code.as_deref() == Some("not_found");
        Err(Error::Refused {
            what,
            status: code.unwrap_or_else(|| status.as_u16().to_string()),
            message,
            not_found,
        })
    }

    fn json(&self, what: &'static str, response: Response<Body>) -> Result<Value, Error> {
        let mut response = self.accepted(what, response)?;
        let text = response.body_mut().with_config().limit(MESSAGE_LIMIT).read_to_string();
        let text = text.map_err(|error| self.failed(what, error))?;
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|error| Error::Protocol { what, why: error.to_string() })
    }
}
