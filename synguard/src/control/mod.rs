//! The control API: HTTP and JSON on a Unix socket.
//!
//! [`handle`] is the way into the run loop, [`socket`] the listener and its file, [`server`] the
//! routes, [`client`] what the command line uses.

pub mod client;
pub mod handle;
pub mod server;
pub mod socket;

pub use handle::{Command, CommandError, Handle};
pub use server::serve;
pub use socket::{Listener, bind};

use serde::{Deserialize, Serialize};

use crate::model::Mode;

/// Body of `POST /v1/attach` and `POST /v1/detach`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfaceRequest {
    /// Name of the interface.
    pub interface: String,
}

/// Body of `POST /v1/mode`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeRequest {
    /// The service; `null` is all of them.
    pub service: Option<String>,
    /// Its mode from now on.
    pub mode: Mode,
}

/// Answer to a request that changed something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// One line: what was done.
    pub message: String,
}

/// Answer to a request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// One line: what is wrong.
    pub error: String,
}
