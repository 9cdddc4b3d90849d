//! The command line's end of the control API.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio::{net::UnixStream, time::timeout};

use super::{
    DetachRequest, Done, EventsRequest, Failure, InterfaceRequest, Listing, ModeRequest,
    NameRequest, ServiceRequest, SourcesRemoval, SourcesRequest,
};
use crate::{
    journal::Event,
    lists::List,
    model::{InterfaceStatus, Mode, Snapshot},
};

/// What a change may take: more than the daemon itself waits for its run loop.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a look may take, for which somebody waits at a terminal.
const PATIENCE_TO_LOOK: Duration = Duration::from_secs(10);
/// A thousand services make a status of about 5 MB.
const ANSWER_LIMIT: usize = 64 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {0}: start it with `synguard run -i IFACE`")]
    NoDaemon(PathBuf),
    /// The socket belongs to others.
    #[error("permission denied on {0}: run as root, or join the group that owns the socket")]
    Denied(PathBuf),
    /// The daemon hangs.
    #[error("the daemon on {path} has not answered for {} s", patience.as_secs())]
    Hangs {
        /// The socket.
        path: PathBuf,
        /// What it had.
        patience: Duration,
    },
    /// The daemon hangs, and those who gave up fill the queue.
    #[error("the daemon on {0} accepts no more connections: it hangs")]
    Full(PathBuf),
    /// The daemon ended, or closed the connection, before it answered.
    #[error("the daemon on {0} ended before it answered: see its log for the reason")]
    Ended(PathBuf),
    /// The daemon says no.
    #[error("{0}")]
    Refused(String),
    /// What came back is no answer of a daemon of this version.
    #[error("what answers on {path} is no synguard daemon of this version: {why}")]
    Strange {
        /// The socket.
        path: PathBuf,
        /// What is strange.
        why: String,
    },
}

impl ClientError {
    /// Whether no daemon was reached, or none that answers.
    pub fn is_unreachable(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

/// Talks to the daemon behind one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the daemon that listens on `socket`; connects at each request.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// `GET /v1/status`.
    pub async fn status(&self) -> Result<Snapshot, ClientError> {
        self.request(Method::GET, "/v1/status", None::<&()>).await
    }

    /// `POST /v1/attach`.
    pub async fn attach(&self, interface: &str) -> Result<InterfaceStatus, ClientError> {
        let body = InterfaceRequest {
            interface: interface.to_owned(),
        };
        self.request(Method::POST, "/v1/attach", Some(&body)).await
    }

    /// `POST /v1/detach`.
    pub async fn detach(&self, request: &DetachRequest) -> Result<Done, ClientError> {
        self.request(Method::POST, "/v1/detach", Some(request))
            .await
    }

    /// `POST /v1/mode`.
    pub async fn set_mode(&self, service: Option<&str>, mode: Mode) -> Result<Done, ClientError> {
        let body = ModeRequest {
            service: service.map(str::to_owned),
            mode,
        };
        self.request(Method::POST, "/v1/mode", Some(&body)).await
    }

    /// `POST /v1/services`.
    pub async fn add_service(&self, request: &ServiceRequest) -> Result<Done, ClientError> {
        self.request(Method::POST, "/v1/services", Some(request))
            .await
    }

    /// `DELETE /v1/services`.
    pub async fn remove_service(&self, name: &str) -> Result<Done, ClientError> {
        let name = name.to_owned();
        let query =
            serde_urlencoded::to_string(NameRequest { name }).map_err(|e| self.strange(e))?;
        let path = format!("/v1/services?{query}");
        self.request(Method::DELETE, &path, None::<&()>).await
    }

    /// `POST /v1/sources`.
    pub async fn add_sources(&self, request: &SourcesRequest) -> Result<Done, ClientError> {
        self.request(Method::POST, "/v1/sources", Some(request))
            .await
    }

    /// `DELETE /v1/sources`.
    pub async fn remove_sources(&self, request: &SourcesRemoval) -> Result<Done, ClientError> {
        self.request(Method::DELETE, "/v1/sources", Some(request))
            .await
    }

    /// `GET /v1/sources`.
    pub async fn list_sources(&self, list: List) -> Result<Vec<Listing>, ClientError> {
        let path = format!("/v1/sources?list={list}");
        let (ok, bytes) = self.exchange(Method::GET, &path, None::<&()>).await?;
        if !ok {
            return Err(self.refusal(&bytes));
        }
        serde_json::Deserializer::from_slice(&bytes)
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|e| self.strange(e))
    }

    /// `POST /v1/reload`.
    pub async fn reload(&self) -> Result<Done, ClientError> {
        self.request(Method::POST, "/v1/reload", None::<&()>).await
    }

    /// `GET /v1/events`: those there are, and with `follow` those to come.
    pub async fn events(&self, request: &EventsRequest) -> Result<Events, ClientError> {
        let query = serde_urlencoded::to_string(request).map_err(|e| self.strange(e))?;
        let path = format!("/v1/events?{query}");
        let begin = async {
            let response = self.send(Method::GET, &path, None::<&()>).await?;
            if response.status().is_success() {
                return Ok(response.into_body());
            }
            Err(self.refusal(&self.collect(response).await?))
        };
        Ok(Events {
            body: self.within(PATIENCE_TO_LOOK, begin).await?,
            client: self.clone(),
            received: Vec::new(),
            silent: false,
        })
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let (ok, bytes) = self.exchange(method, path, body).await?;
        if ok {
            serde_json::from_slice(&bytes).map_err(|e| self.strange(e))
        } else {
            Err(self.refusal(&bytes))
        }
    }

    /// The answer, and whether it is what was asked for.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(bool, Bytes), ClientError> {
        let patience = if method == Method::GET {
            PATIENCE_TO_LOOK
        } else {
            PATIENCE
        };
        let exchange = async {
            let response = self.send(method, path, body).await?;
            let ok = response.status().is_success();
            Ok((ok, self.collect(response).await?))
        };
        self.within(patience, exchange).await
    }

    /// What comes of `exchange`, which may take so long.
    async fn within<T>(
        &self,
        patience: Duration,
        exchange: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        let hangs = |_| ClientError::Hangs {
            path: self.socket.clone(),
            patience,
        };
        timeout(patience, exchange).await.map_err(hangs)?
    }

    fn refusal(&self, answer: &[u8]) -> ClientError {
        match serde_json::from_slice(answer) {
            Ok(Failure { error }) => ClientError::Refused(error),
            Err(e) => self.strange(e),
        }
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_LIMIT);
        let body = body.collect().await.map_err(|e| self.strange(e))?;
        Ok(body.to_bytes())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<Response<Incoming>, ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| match e.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NoDaemon(self.socket.clone())
                }
                io::ErrorKind::PermissionDenied => ClientError::Denied(self.socket.clone()),
                io::ErrorKind::WouldBlock => ClientError::Full(self.socket.clone()),
                _ => self.strange(e),
            })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.strange(e))?;
        // It ends with the sender; its errors reach the request below.
        tokio::spawn(connection);

        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "synguard");
        let mut bytes = Vec::new();
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json");
            bytes = serde_json::to_vec(body).map_err(|e| self.strange(e))?;
        }
        let request = request
            .body(Full::new(Bytes::from(bytes)))
            .map_err(|e| self.strange(e))?;
        sender
            .send_request(request)
            .await
            .map_err(|e| match e.is_parse() {
                true => self.strange(e),
                false => ClientError::Ended(self.socket.clone()),
            })
    }

    fn strange(&self, why: impl ToString) -> ClientError {
        ClientError::Strange {
            path: self.socket.clone(),
            why: why.to_string(),
        }
    }
}

/// Events as they arrive.
#[derive(Debug)]
pub struct Events {
    client: Client,
    body: Incoming,
    /// What is not read yet; the end may be the beginning of a line.
    received: Vec<u8>,
    /// The daemon hangs, and that was said.
    silent: bool,
}

impl Events {
    /// The next event; none at the end.
    ///
    /// That the daemon [hangs](ClientError::Hangs) is said once. Whoever asks again waits for as long
    /// as it takes.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                if line.trim_ascii().is_empty() {
                    // It lives, and nothing happens.
                    continue;
                }
                let event = serde_json::from_slice(&line).map_err(|e| self.client.strange(e))?;
                return Ok(Some(event));
            }
            let frame = if self.silent {
                self.body.frame().await
            } else {
                let frame = async { Ok(self.body.frame().await) };
                let frame = self.client.within(PATIENCE_TO_LOOK, frame).await;
                self.silent = frame.is_err();
                frame?
            };
            self.silent = false;
            match frame {
                None => return Ok(None),
                Some(Err(_)) => return Err(ClientError::Ended(self.client.socket.clone())),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.received.extend_from_slice(&bytes);
                    }
                }
            }
        }
    }
}
