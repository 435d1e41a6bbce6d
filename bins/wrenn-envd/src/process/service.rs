//! `process.Process`, as its clients call it.

use std::{sync::Arc, time::Duration};

use connectrpc::{
    ConnectError, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::{Stream, StreamExt, stream};
use nix::sys::signal::Signal;
use tokio::sync::mpsc;

use super::{
    Error,
    output::{Event, Kind},
    reaper::Status,
    running::Running,
    spawn::{self, Start},
    terminal::Size,
};
use crate::{
    agent::Agent,
    http::auth,
    proto::process::{
        __buffa::oneof::{
            process_event::{Event as Body, data_event::Output},
            process_input::Input,
            process_selector::Selector,
            stream_input_request::Event as Inbound,
        },
        CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse,
        PTY, Process, ProcessEvent, ProcessInfo, ProcessInput, ProcessSelector, SendInputRequest,
        SendInputResponse, SendSignalRequest, SendSignalResponse, StartRequest, StartResponse,
        StreamInputRequest, StreamInputResponse, UpdateRequest, UpdateResponse,
        process_event::{DataEvent, EndEvent, KeepAlive, StartEvent},
    },
};

/// How long a stream is silent before it says that it lives, unless the client asks otherwise.
const KEEPALIVE: Duration = Duration::from_secs(90);
/// The header in which a client asks: seconds.
const KEEPALIVE_HEADER: &str = "keepalive-ping-interval";

/// The service; its processes are the agent's.
pub struct Service(pub Arc<Agent>);

impl Service {
    fn running(&self, selector: Option<ProcessSelector>) -> Result<Arc<Running>, Error> {
        let table = self.0.processes.lock();
        match selector.and_then(|selector| selector.selector) {
            Some(Selector::Pid(pid)) => table.by_pid(pid).ok_or_else(|| Error::NoProcess(pid.to_string())),
            Some(Selector::Tag(tag)) => {
                table.by_tag(&tag).ok_or_else(|| Error::NoProcess(format!("tagged {tag:?}")))
            }
            None => Err(Error::Missing("process.pid or process.tag")),
        }
    }
}

#[allow(refining_impl_trait)]
impl Process for Service {
    async fn list(
        &self,
        _: RequestContext,
        _: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<ListResponse> {
        let table = self.0.processes.lock();
        let mut processes: Vec<_> = table
            .all()
            .map(|process| ProcessInfo {
                config: process.config.clone().into(),
                pid: process.pid,
                tag: process.tag.clone(),
                ..Default::default()
            })
            .collect();
        processes.sort_unstable_by_key(|process| process.pid);
        Response::ok(ListResponse { processes, ..Default::default() })
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<StartResponse>> {
        let request = request.to_owned_message();
        let user = self.0.user(auth::basic_user(context.headers()).as_deref()).map_err(Error::from)?;
        let start = Start {
            config: request.process.into_option().ok_or(Error::Missing("process"))?,
            user,
            terminal: request.pty.into_option().map(size).transpose()?,
            tag: request.tag,
            stdin: request.stdin.unwrap_or(true),
            deadline: context.deadline(),
        };
        let process = spawn::start(&self.0, start)?;
        let events = events(&process, keepalive(&context));
        let events = events
            .map(|event| event.map(|event| StartResponse { event: event.into(), ..Default::default() }));
        Ok(Response::stream(events))
    }

    async fn connect(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<ConnectResponse>> {
        let process = self.running(request.to_owned_message().process.into_option())?;
        let events = events(&process, keepalive(&context));
        let events = events
            .map(|event| event.map(|event| ConnectResponse { event: event.into(), ..Default::default() }));
        Ok(Response::stream(events))
    }

    async fn update(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<UpdateResponse> {
        let request = request.to_owned_message();
        let process = self.running(request.process.into_option())?;
        if let Some(pty) = request.pty.into_option() {
            process.resize(size(pty)?).await?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input(
        &self,
        _: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<StreamInputResponse> {
        let mut process = None;
        while let Some(request) = requests.next().await {
            match (request?.to_owned_message().event, &process) {
                (Some(Inbound::Start(start)), None) => {
                    process = Some(self.running(start.process.into_option())?)
                }
                (Some(Inbound::Data(data)), Some(process)) => feed(process, data.input.into_option()).await?,
                (Some(Inbound::Keepalive(_)), _) => (),
                (Some(Inbound::Start(_)), Some(_)) => {
                    return Err(ConnectError::invalid_argument("a second start on one stream"));
                }
                (Some(Inbound::Data(_)) | None, _) => return Err(Error::Missing("start").into()),
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<SendInputResponse> {
        let request = request.to_owned_message();
        let process = self.running(request.process.into_option())?;
        feed(&process, request.input.into_option()).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<SendSignalResponse> {
        let request = request.to_owned_message();
        let number = request.signal.to_i32();
        let signal = Signal::try_from(number).map_err(|_| Error::Invalid {
            what: "signal",
            value: number.to_string(),
            problem: "is no signal",
        })?;
        let pid = self.running(request.process.into_option())?.pid;
        self.0.processes.lock().signal(pid, signal)?;
        Response::ok(SendSignalResponse::default())
    }

    async fn close_stdin(
        &self,
        _: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<CloseStdinResponse> {
        self.running(request.to_owned_message().process.into_option())?.close_stdin().await?;
        Response::ok(CloseStdinResponse::default())
    }
}

async fn feed(process: &Running, input: Option<ProcessInput>) -> Result<(), Error> {
    match input.and_then(|input| input.input) {
        Some(Input::Stdin(bytes)) => process.write_stdin(&bytes).await,
        Some(Input::Pty(bytes)) => process.write_pty(&bytes).await,
        None => Err(Error::Missing("input.stdin or input.pty")),
    }
}

fn size(pty: PTY) -> Result<Size, Error> {
    let size = pty.size.into_option().ok_or(Error::Missing("pty.size"))?;
    let number = |what, value: u32| {
        let problem = "is not from 1 to 65535";
        let fits = u16::try_from(value).ok().filter(|&value| value > 0);
        fits.ok_or_else(|| Error::Invalid { what, value: value.to_string(), problem })
    };
    Ok(Size { cols: number("pty.size.cols", size.cols)?, rows: number("pty.size.rows", size.rows)? })
}

fn keepalive(context: &RequestContext) -> Duration {
    let asked = context.header(KEEPALIVE_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
    asked.filter(|&seconds| seconds > 0).map_or(KEEPALIVE, Duration::from_secs)
}

/// A process's life from now on: `start`, its output, `end`; a keepalive when it is silent.
fn events(
    process: &Running,
    keepalive: Duration,
) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + use<> {
    let started = Body::from(StartEvent { pid: process.pid, ..Default::default() });
    let listening = Some(process.hub.subscribe());
    stream::once(async { Ok(event(started)) }).chain(stream::unfold(listening, move |listening| async move {
        let mut listening: mpsc::Receiver<Event> = listening?;
        match tokio::time::timeout(keepalive, listening.recv()).await {
            Err(_) => Some((Ok(event(KeepAlive::default().into())), Some(listening))),
            Ok(Some(Event::Data(kind, bytes))) => {
                Some((Ok(event(data(kind, bytes.into()))), Some(listening)))
            }
            Ok(Some(Event::End(status))) => Some((Ok(event(end(status))), None)),
            Ok(None) => {
                let message = "output was not taken in time; the process goes on without this stream";
                Some((Err(ConnectError::resource_exhausted(message)), None))
            }
        }
    }))
}

fn event(body: Body) -> ProcessEvent {
    ProcessEvent { event: Some(body), ..Default::default() }
}

fn data(kind: Kind, bytes: Vec<u8>) -> Body {
    let output = match kind {
        Kind::Stdout => Output::Stdout(bytes),
        Kind::Stderr => Output::Stderr(bytes),
        Kind::Pty => Output::Pty(bytes),
    };
    DataEvent { output: Some(output), ..Default::default() }.into()
}

fn end(status: Status) -> Body {
    let (exit_code, exited) = match status {
        Status::Exited(code) => (code, true),
        Status::Killed { .. } => (-1, false),
    };
    let error = (status != Status::Exited(0)).then(|| status.to_string());
    EndEvent { exit_code, exited, status: status.to_string(), error, ..Default::default() }.into()
}
