//! The worker's control stream: opens it, keeps it alive, opens it again, and gives up when the lease is over.
//!
//! It runs on a thread of its own and does no work of the user's, so a long computation is never taken for death.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::shared::{Over, Shared};
use crate::control::FRAME_LIMIT;
use crate::link::Arrival;
use crate::proto::PROTOCOL;
use crate::proto::control::control_client::ControlClient;
use crate::proto::control::{self as pb, FromWorker, ToWorker, from_worker, to_worker};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Frames that wait for the network; more wait in the outbox.
const OUTBOUND: usize = 64;

/// How a stream ended.
enum End {
    /// As the worker wanted.
    Closed,
    /// The controller does not want this worker; calling again is useless.
    Refused(String),
    /// Something between the two broke.
    Broken(String),
}

struct Session {
    shared: Arc<Shared>,
    incarnation: [u8; 16],
    /// When the controller was last heard, and how long it may be silent.
    contact: Instant,
    lease: Duration,
    heartbeat: Duration,
    pause: Duration,
}

/// Runs the session until the worker closes it, the controller refuses it or the lease is over.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut incarnation = [0; 16];
    rand::rng().fill_bytes(&mut incarnation);
    let mut session = Session {
        incarnation,
        contact: Instant::now(),
        lease: shared.config.connect_timeout,
        heartbeat: Duration::from_millis(100),
        pause: FIRST_PAUSE,
        shared: shared.clone(),
    };
    let over = loop {
        match session.stream().await {
            End::Closed => break Over::Closed,
            End::Refused(reason) => break Over::Refused(reason),
            End::Broken(reason) => {
                if let Some(over) = session.pause(reason).await {
                    break over;
                }
            }
        }
    };
    tracing::debug!(slot = shared.config.slot, ?over, "the control session is over");
    shared.end(over);
}

impl Session {
    fn left(&self) -> Duration {
        self.lease.saturating_sub(self.contact.elapsed())
    }

    /// Waits a little before the next try, longer each time, unless the lease is over.
    async fn pause(&mut self, reason: String) -> Option<Over> {
        let silence = self.contact.elapsed();
        if silence >= self.lease {
            return Some(Over::Lost { silence, reason });
        }
        tracing::debug!(slot = self.shared.config.slot, reason, "the control stream broke; calling again");
        let pause = self.pause.mul_f64(rand::random_range(0.5..1.0)).min(self.left());
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let resumed = Instant::now() + pause;
        while Instant::now() < resumed {
            if self.shared.lock().closing {
                return Some(Over::Closed);
            }
            timeout(resumed - Instant::now(), self.shared.wake.notified()).await.ok();
        }
        None
    }

    /// One stream, from the call to its end.
    async fn stream(&mut self) -> End {
        let (outbound, frames) = mpsc::channel(OUTBOUND);
        outbound.try_send(self.hello()).ok();
        let inbound = match timeout(self.left(), self.call(frames)).await {
            Ok(Ok(inbound)) => inbound,
            Ok(Err(end)) => return end,
            Err(_) => return End::Broken(format!("it did not answer within {:?}", self.lease)),
        };
        self.shared.lock().outbox.reconnect();
        self.converse(outbound, inbound).await
    }

    fn hello(&self) -> FromWorker {
        let config = &self.shared.config;
        let hello = pb::Hello {
            protocol: PROTOCOL,
            gang: config.gang,
            slot: config.slot,
            attempt: config.attempt,
            incarnation: self.incarnation.to_vec(),
            pid: std::process::id(),
            host: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            resources: Some(super::host::resources()),
        };
        let received = self.shared.lock().inbox.acknowledged();
        FromWorker { sequence: 0, received, body: Some(from_worker::Body::Hello(hello)) }
    }

    async fn call(&self, frames: mpsc::Receiver<FromWorker>) -> Result<Streaming<ToWorker>, End> {
        let config = &self.shared.config;
        let channel = config.connect().await.map_err(End::Broken)?;
        let mut client = ControlClient::new(channel).max_decoding_message_size(2 * FRAME_LIMIT);
        let mut request = Request::new(ReceiverStream::new(frames));
        let bearer = MetadataValue::try_from(format!("Bearer {}", config.token.expose()));
        let mut bearer = bearer.map_err(|_| End::Refused("the token is not printable ASCII".into()))?;
        bearer.set_sensitive(true);
        request.metadata_mut().insert("authorization", bearer);
        client.attach(request).await.map(tonic::Response::into_inner).map_err(ended)
    }

    async fn converse(
        &mut self,
        outbound: mpsc::Sender<FromWorker>,
        mut inbound: Streaming<ToWorker>,
    ) -> End {
        let mut beat = ticks(self.heartbeat);
        loop {
            if self.done() {
                return End::Closed;
            }
            let waiting = self.shared.lock().outbox.peek_next().is_some();
            tokio::select! {
                biased;
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => {
                        self.contact = Instant::now();
                        let before = self.heartbeat;
                        if !self.frame(frame) {
                            return End::Broken("it sent frames out of order".into());
                        }
                        if self.heartbeat != before {
                            beat = ticks(self.heartbeat);
                        }
                    }
                    Ok(None) => return End::Broken("it closed the stream".into()),
                    Err(status) => return ended(status),
                },
                permit = outbound.reserve(), if waiting => match permit {
                    Ok(permit) => self.send(permit),
                    Err(_) => return End::Broken("the connection closed".into()),
                },
                () = self.shared.wake.notified() => {}
                _ = beat.tick() => {
                    let silence = self.contact.elapsed();
                    if silence >= self.lease / 4 {
                        return End::Broken(format!("nothing was heard on the stream for {silence:?}"));
                    }
                    self.beat(&outbound);
                }
            }
        }
    }

    fn done(&self) -> bool {
        let state = self.shared.lock();
        state.closing
    }

    /// Takes in a frame; false if the stream cannot be trusted.
    fn frame(&mut self, frame: ToWorker) -> bool {
        self.shared.acknowledged(frame.received);
        match (frame.sequence, frame.body) {
            (0, Some(to_worker::Body::Welcome(welcome))) => {
                self.pause = FIRST_PAUSE;
                self.lease = Duration::from_millis(u64::from(welcome.lease_ms));
                self.heartbeat = Duration::from_millis(u64::from(welcome.heartbeat_ms.max(1)));
                let mut state = self.shared.lock();
                state.outbox.set_window(welcome.window_frames as usize, welcome.window_bytes as usize);
                true
            }
            (0, _) => true,
            (sequence, Some(body)) => self.shared.arrived(sequence, body) != Arrival::Broken,
            (_, None) => false,
        }
    }

    /// Sends the next of the outbox; the log lines that were written before the worker's last words go first.
    fn send(&self, permit: mpsc::Permit<'_, FromWorker>) {
        use from_worker::Body;
        let last_words =
            matches!(self.shared.lock().outbox.peek_next(), Some(Body::Failed(_) | Body::Finished(_)));
        if last_words && let Some(lines) = self.shared.lines() {
            permit.send(self.unnumbered(lines));
            return;
        }
        let mut state = self.shared.lock();
        let received = state.inbox.acknowledged();
        if let Some((sequence, body)) = state.outbox.send_next() {
            permit.send(FromWorker { sequence, received, body: Some(body.clone()) });
        }
    }

    fn unnumbered(&self, body: from_worker::Body) -> FromWorker {
        FromWorker { sequence: 0, received: self.shared.lock().inbox.acknowledged(), body: Some(body) }
    }

    /// Says that the worker is alive. If the network takes nothing, that is what the controller will see.
    fn beat(&self, outbound: &mpsc::Sender<FromWorker>) {
        if let Ok(permit) = outbound.try_reserve() {
            let body = self.shared.lines().unwrap_or(from_worker::Body::Heartbeat(pb::Heartbeat {}));
            permit.send(self.unnumbered(body));
        }
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut beat = tokio::time::interval(period);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}

/// Whether to call again after this status.
fn ended(status: Status) -> End {
    match status.code() {
        Code::Unauthenticated
        | Code::PermissionDenied
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Unimplemented => End::Refused(status.message().to_owned()),
        code => End::Broken(format!("{code:?}: {}", status.message())),
    }
}
