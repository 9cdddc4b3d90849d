//! The routes of the control API. Every failure is a JSON object with one line in `error`.

use std::{convert::Infallible, future::Future, io, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{
        DefaultBodyLimit, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde::Serialize;
use tokio::{net::UnixListener, sync::watch, time::sleep};

use super::{
    CommandError, DetachRequest, Done, EventsRequest, Failure, Handle, InterfaceRequest, Listing,
    ModeRequest, NameRequest, SIGN_OF_LIFE, ServiceRequest, SourcesQuery, SourcesRemoval,
    SourcesRequest, socket::Listener,
};
use crate::{
    journal::Event,
    model::{InterfaceStatus, Snapshot},
};

/// Largest request body: a service may have thousands of prefixes.
const BODY_LIMIT: usize = 1024 * 1024;

/// The same for lists of sources: a hundred thousand prefixes of the longest kind take 5 MB.
const SOURCES_LIMIT: usize = 8 * 1024 * 1024;
/// Entries of a list in one piece of an answer.
const PIECE: usize = 1000;

/// Serves the control API until `shutdown` resolves and running requests are answered; then the
/// socket's file is gone.
pub async fn serve(
    listener: Listener,
    handle: Handle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (socket, _file) = listener.into_parts();
    let socket = UnixListener::from_std(socket)?;
    // Followers would never end by themselves.
    let (serving, stopped) = watch::channel(());
    let shutdown = async {
        shutdown.await;
        drop(serving);
    };
    let router = router(handle).layer(Extension(Stopped(stopped)));
    crate::http::serve(socket, router, shutdown).await
}

/// Its sender is gone when it is time to stop.
#[derive(Clone)]
struct Stopped(watch::Receiver<()>);

fn router(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/events", get(events))
        .route("/v1/services", post(add_service).delete(remove_service))
        .route(
            "/v1/sources",
            get(list_sources)
                .post(add_sources)
                .delete(remove_sources)
                .layer(DefaultBodyLimit::max(SOURCES_LIMIT)),
        )
        .route("/v1/attach", post(attach))
        .route("/v1/detach", post(detach))
        .route("/v1/mode", post(mode))
        .route("/v1/reload", post(reload))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(handle)
}

async fn status(State(handle): State<Handle>) -> Result<Json<Snapshot>, ApiError> {
    Ok(Json(handle.snapshot().await?))
}

async fn events(
    State(handle): State<Handle>,
    Extension(Stopped(stopped)): Extension<Stopped>,
    query: Result<Query<EventsRequest>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(request) = query?;
    let follow = request.follow;
    let query = request.into();
    let body = if follow {
        let follower = handle.journal().follow(query);
        Body::from_stream(stream::unfold(
            (follower, stopped),
            async |(mut follower, mut stopped)| {
                tokio::select! {
                    events = follower.next() => {
                        Some((Ok::<_, Infallible>(lines(&refs(&events))), (follower, stopped)))
                    }
                    // Followers that have gone are noticed by it too.
                    () = sleep(SIGN_OF_LIFE) => {
                        Some((Ok("\n".to_owned()), (follower, stopped)))
                    }
                    // Nothing is ever sent: this is the end.
                    _ = stopped.changed() => None,
                }
            },
        ))
    } else {
        Body::from(lines(&refs(&handle.journal().select(&query))))
    };
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], body).into_response())
}

fn refs(events: &[Arc<Event>]) -> Vec<&Event> {
    events.iter().map(Arc::as_ref).collect()
}

/// An object a line.
fn lines(objects: &[impl Serialize]) -> String {
    let line = |object| Some(format!("{}\n", serde_json::to_string(object).ok()?));
    objects.iter().filter_map(line).collect()
}

async fn attach(
    State(handle): State<Handle>,
    body: Result<Json<InterfaceRequest>, JsonRejection>,
) -> Result<Json<InterfaceStatus>, ApiError> {
    let Json(request) = body?;
    Ok(Json(handle.attach(request.interface).await?))
}

async fn detach(
    State(handle): State<Handle>,
    body: Result<Json<DetachRequest>, JsonRejection>,
) -> Result<Json<Done>, ApiError> {
    let Json(request) = body?;
    let message = handle.detach(request).await?;
    Ok(Json(Done { message }))
}

async fn mode(
    State(handle): State<Handle>,
    body: Result<Json<ModeRequest>, JsonRejection>,
) -> Result<Json<Done>, ApiError> {
    let Json(ModeRequest { service, mode }) = body?;
    let message = match &service {
        Some(name) => format!("service {name} is in mode {mode}"),
        None => format!("every service is in mode {mode}"),
    };
    handle.set_mode(service, mode).await?;
    Ok(Json(Done { message }))
}

async fn add_service(
    State(handle): State<Handle>,
    body: Result<Json<ServiceRequest>, JsonRejection>,
) -> Result<Json<Done>, ApiError> {
    let Json(request) = body?;
    let message = handle.add_service(request).await?;
    Ok(Json(Done { message }))
}

async fn remove_service(
    State(handle): State<Handle>,
    query: Result<Query<NameRequest>, QueryRejection>,
) -> Result<Json<Done>, ApiError> {
    let Query(NameRequest { name }) = query?;
    let message = handle.remove_service(name).await?;
    Ok(Json(Done { message }))
}

async fn list_sources(
    State(handle): State<Handle>,
    query: Result<Query<SourcesQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(SourcesQuery { list }) = query?;
    let mut left = handle.list_sources(list).await?.into_iter();
    // A piece at a time: as a whole it may have tens of megabytes.
    let pieces = stream::iter(std::iter::from_fn(move || {
        let piece: Vec<Listing> = left.by_ref().take(PIECE).collect();
        (!piece.is_empty()).then(|| Ok::<_, Infallible>(lines(&piece)))
    }));
    let body = Body::from_stream(pieces);
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], body).into_response())
}

async fn add_sources(
    State(handle): State<Handle>,
    body: Result<Json<SourcesRequest>, JsonRejection>,
) -> Result<Json<Done>, ApiError> {
    let Json(request) = body?;
    let message = handle.add_sources(request).await?;
    Ok(Json(Done { message }))
}

async fn remove_sources(
    State(handle): State<Handle>,
    body: Result<Json<SourcesRemoval>, JsonRejection>,
) -> Result<Json<Done>, ApiError> {
    let Json(request) = body?;
    let message = handle.remove_sources(request).await?;
    Ok(Json(Done { message }))
}

async fn reload(State(handle): State<Handle>) -> Result<Json<Done>, ApiError> {
    Ok(Json(Done {
        message: handle.reload().await?,
    }))
}

async fn no_route(uri: Uri) -> ApiError {
    ApiError(StatusCode::NOT_FOUND, format!("there is no {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}", uri.path()),
    )
}

struct ApiError(StatusCode, String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (
            self.0,
            Json(Failure {
                error: crate::one_line(&self.1),
            }),
        )
            .into_response()
    }
}

impl From<CommandError> for ApiError {
    fn from(e: CommandError) -> Self {
        let status = match e {
            CommandError::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            CommandError::Busy => StatusCode::GATEWAY_TIMEOUT,
            CommandError::Refused(_) => StatusCode::CONFLICT,
        };
        Self(status, e.to_string())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(e: QueryRejection) -> Self {
        Self(e.status(), e.body_text())
    }
}

impl From<JsonRejection> for ApiError {
    fn from(e: JsonRejection) -> Self {
        Self(e.status(), e.body_text())
    }
}
