//! HTTP for scrapers: `/metrics`, `/healthz`, and a page at `/` that links to both.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use thiserror::Error;

use super::exposition::{self, Format};
use crate::control::Handle;

/// The metrics address could not be had.
#[derive(Debug, Error)]
#[error(
    "cannot listen on {address} for metrics: {source}; name another address with --metrics, or \
     `--metrics off`"
)]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// A listening socket for scrapers.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Listens on `address`. Needs no runtime, so that a daemon can call it before it touches
/// anything.
pub fn bind(address: SocketAddr) -> Result<Listener, BindError> {
    let failed = |source| BindError { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Listener(listener))
}

/// Answers scrapers until `shutdown` resolves and running scrapes are answered.
pub async fn serve(
    listener: Listener,
    handle: Handle,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener.0)?;
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/", get(links))
        .with_state(handle);
    crate::http::serve(listener, router, shutdown).await
}

async fn metrics(State(handle): State<Handle>, headers: HeaderMap) -> Response {
    let snapshot = match handle.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(e) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")).into_response(),
    };
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let format = Format::accepted(accept);
    match exposition::render(snapshot, format) {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}

/// Healthy is a run loop that answers and can read the kernel's tables.
async fn health(State(handle): State<Handle>) -> (StatusCode, String) {
    match handle.snapshot().await {
        Ok(_) => (StatusCode::OK, "ok\n".into()),
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("{e}\n")),
    }
}

async fn links() -> Html<&'static str> {
    Html(concat!(
        "<!doctype html><title>synguard</title><h1>synguard ",
        env!("CARGO_PKG_VERSION"),
        "</h1><p><a href=\"/metrics\">metrics</a> <a href=\"/healthz\">health</a>\n"
    ))
}
