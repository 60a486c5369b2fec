//! The `Control` service: lets workers in and hands what they say to the gang they belong to.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::interceptor::InterceptedService;
use tonic::service::{Interceptor, Routes};
use tonic::{Request, Response, Status, Streaming};

use super::rendezvous::RendezvousService;
use super::{FRAME_LIMIT, Shared};
use crate::gang::actor::{Call, Inbound};
use crate::gang::machine::Refusal;
use crate::gang::state::Incarnation;
use crate::proto::PROTOCOL;
use crate::proto::control::control_server::{Control, ControlServer};
use crate::proto::control::{FromWorker, Hello, ToWorker, from_worker};
use crate::proto::rendezvous::rendezvous_server::RendezvousServer;
use crate::token::Token;

/// Frames to a worker that wait for the network; more wait in the gang.
const OUTBOUND: usize = 64;

/// The services of the port, behind the token.
pub(super) fn routes(shared: &Arc<Shared>) -> Routes {
    let guard = Guard(shared.token.clone());
    let control =
        ControlServer::new(ControlService(shared.clone())).max_decoding_message_size(2 * FRAME_LIMIT);
    let rendezvous = RendezvousServer::new(RendezvousService(shared.rendezvous.clone()));
    Routes::new(InterceptedService::new(control, guard.clone()))
        .add_service(InterceptedService::new(rendezvous, guard))
}

/// Lets through who has the token.
#[derive(Clone)]
struct Guard(Token);

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let presented = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        match presented.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if self.0.matches(token) => Ok(request),
            Some(_) => Err(Status::unauthenticated("the token is not this run's")),
            None => {
                Err(Status::unauthenticated("a token is needed, as metadata authorization: Bearer <token>"))
            }
        }
    }
}

struct ControlService(Arc<Shared>);

#[tonic::async_trait]
impl Control for ControlService {
    type AttachStream = ReceiverStream<Result<ToWorker, Status>>;

    async fn attach(
        &self,
        request: Request<Streaming<FromWorker>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(self.0.hello_timeout, stream.message()).await.map_err(|_| {
            Status::deadline_exceeded(format!("no hello came within {:?}", self.0.hello_timeout))
        })??;
        let Some(FromWorker { received, body: Some(from_worker::Body::Hello(hello)), .. }) = first else {
            return Err(Status::invalid_argument("the first frame of a stream must be hello"));
        };
        let (slot, attempt) = (hello.slot, hello.attempt);
        let incarnation = check(&hello)?;
        let gang = self.0.gang(hello.gang).ok_or_else(|| refused(slot, attempt, Refusal::UnknownGang))?;
        let (outbound, frames) = mpsc::channel(OUTBOUND);
        let (answer, answered) = oneshot::channel();
        let call = Call { hello, incarnation, received, outbound, answer };
        let over = || refused(slot, attempt, Refusal::GivenUp);
        gang.send(Inbound::Call(Box::new(call))).await.map_err(|_| over())?;
        let admitted =
            answered.await.map_err(|_| over())?.map_err(|refusal| refused(slot, attempt, refusal))?;
        tokio::spawn(read(stream, gang, slot, admitted.connection, admitted.closed));
        Ok(Response::new(ReceiverStream::new(frames)))
    }
}

fn check(hello: &Hello) -> Result<Incarnation, Status> {
    if hello.protocol != PROTOCOL {
        return Err(Status::failed_precondition(format!(
            "the worker speaks revision {} of the protocol and the controller {PROTOCOL}; run the same build on both sides",
            hello.protocol
        )));
    }
    let incarnation = hello.incarnation.as_slice().try_into();
    incarnation.map(Incarnation).map_err(|_| Status::invalid_argument("an incarnation has 16 bytes"))
}

fn refused(slot: u32, attempt: u32, refusal: Refusal) -> Status {
    tracing::warn!(slot, attempt, %refusal, "refused a worker");
    let message = refusal.to_string();
    match refusal {
        Refusal::UnknownGang | Refusal::UnknownSlot => Status::not_found(message),
        Refusal::SlotTaken => Status::already_exists(message),
        Refusal::OtherAttempt { .. } | Refusal::GivenUp => Status::failed_precondition(message),
    }
}

/// Hands a worker's frames to its gang until the stream ends or the gang closes the connection. The gang never waits for
/// its owner, so this never stops the heartbeats behind a report.
async fn read(
    mut stream: Streaming<FromWorker>,
    gang: mpsc::Sender<Inbound>,
    slot: u32,
    connection: u64,
    mut closed: oneshot::Receiver<()>,
) {
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            _ = &mut closed => return,
        };
        let inbound = match message {
            Ok(Some(frame)) => Inbound::Frame { slot, connection, frame },
            Ok(None) => Inbound::Gone { slot, connection, reason: "the worker closed its stream".into() },
            Err(status) => Inbound::Gone { slot, connection, reason: status.message().to_owned() },
        };
        let last = matches!(inbound, Inbound::Gone { .. });
        if gang.send(inbound).await.is_err() || last {
            return;
        }
    }
}
