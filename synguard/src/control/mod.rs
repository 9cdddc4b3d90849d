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

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    journal::{Kind, Query, Timestamp},
    lists::{List, Prefix},
    model::Mode,
};

/// Time between two signs of life of a daemon whose events are followed.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// Body of `POST /v1/detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachRequest {
    /// Name of the interface; `null` is all of them.
    pub interface: Option<String>,
    /// What becomes of connections that need the programs.
    #[serde(default)]
    pub how: DetachHow,
    /// How long to wait for them at most, seconds.
    #[serde(default = "DetachRequest::patience")]
    pub patience_seconds: u64,
}

impl DetachRequest {
    const fn patience() -> u64 {
        600
    }
}

/// What becomes of spliced connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DetachHow {
    /// If there are any, nothing is done.
    #[default]
    Unless,
    /// They are cut.
    Now,
    /// They are waited for.
    Drain,
}

/// Body of `POST /v1/attach`.
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

/// Body of `POST /v1/services`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRequest {
    /// The service, with the keys of a [[service]] in the configuration file.
    pub service: Map<String, Value>,
    /// Whether it ends with the daemon.
    #[serde(default)]
    pub temporary: bool,
}

/// Query of `DELETE /v1/services`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameRequest {
    /// Name of the service.
    pub name: String,
}

/// Body of `POST /v1/sources`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcesRequest {
    /// Which list.
    pub list: List,
    /// What to list.
    pub prefixes: Vec<Prefix>,
    /// Until when; `null` is until it is removed.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// What to remember of it, one line.
    #[serde(default)]
    pub comment: Option<String>,
    /// Whether it ends with the daemon.
    #[serde(default)]
    pub temporary: bool,
}

/// Body of `DELETE /v1/sources`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcesRemoval {
    /// Which list.
    pub list: List,
    /// What to remove from it.
    pub prefixes: Vec<Prefix>,
}

/// Query of `GET /v1/sources`. The answer has a [`Listing`] a line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourcesQuery {
    /// Which list.
    pub list: List,
}

/// A prefix in one of the lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// It.
    pub prefix: Prefix,
    /// Its list.
    pub list: List,
    /// Until when, if that was said.
    pub until: Option<Timestamp>,
    /// What somebody wanted to remember.
    pub comment: Option<String>,
    /// Where it stands: `FILE, line N`, `command`, or `command, temporary`.
    pub origin: String,
    /// Whether it is in force; else the configuration, which decides, has the same prefix.
    pub in_force: bool,
}

/// Query of `GET /v1/events`. The answer has an event a line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EventsRequest {
    /// Only events with a greater number.
    pub after: Option<u64>,
    /// Only events of this moment and later.
    pub since: Option<Timestamp>,
    /// Only events of this kind.
    pub kind: Option<Kind>,
    /// Only events about this service.
    pub service: Option<String>,
    /// Routine events too.
    pub routine: bool,
    /// Only so many, the newest.
    pub limit: Option<usize>,
    /// Go on with those to come until the daemon or the client ends. When nothing happens, an empty
    /// line every few seconds says that the daemon lives.
    pub follow: bool,
}

impl From<EventsRequest> for Query {
    fn from(request: EventsRequest) -> Self {
        Self {
            after: request.after,
            since: request.since,
            kind: request.kind,
            service: request.service,
            routine: request.routine,
            limit: request.limit,
        }
    }
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
