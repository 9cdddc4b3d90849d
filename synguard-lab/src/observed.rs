//! A guarded box that a Prometheus watches, while clients come and floods come and go: what the
//! dashboard's queries are tried on and its picture is made of.

use std::{
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};

use crate::{
    edge::{Edge, EdgeOptions, SERVER_V4},
    flood::{FloodSpec, Kind, Rate},
    guard::Guard,
    http::{HttpServer, ServerOptions},
    load::{LoadClient, LoadOptions, Pattern},
    prometheus::{Prometheus, now},
};

/// Two services: one on the box, and one that is treated as if its server were behind it. What a flood
/// leaves half-open is given up early, so that they become calm within a short play.
const SERVICES: &str = "[defaults]\nhalf_open_timeout = \"10s\"\n\
                        [[service]]\nname = \"web\"\naddresses = [\"interface\"]\nports = [80]\n\
                        [[service]]\nname = \"shop\"\naddresses = [\"interface\"]\nports = [8080]\n\
                        admission = \"proxy\"\n";
/// The port of the one and of the other.
const PORTS: [u16; 2] = [80, 8080];
/// Legitimate connections that begin there per second.
const CLIENTS: [u32; 2] = [200, 100];

/// The box. Fields are dropped in this order.
pub struct Observed {
    /// Its Prometheus.
    pub prometheus: Prometheus,
    guard: Guard,
    _servers: Vec<HttpServer>,
    edge: Edge,
}

/// Something that goes on for a while.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// Clients only.
    Calm(Duration),
    /// A flood of so many packets per second on the first service or the second.
    Flood(Kind, usize, u64, Duration),
}

impl Observed {
    /// Builds it of the `synguard` and `prometheus` given.
    pub fn new(synguard: &Path, prometheus: &Path) -> Result<Self> {
        let edge = Edge::new(EdgeOptions::default())?;
        let serve = |port| {
            let options = ServerOptions {
                port,
                ..ServerOptions::default()
            };
            HttpServer::start(&edge.server, options)
        };
        let servers = PORTS.into_iter().map(serve).collect::<Result<_>>()?;
        let guard = Guard::start(synguard, &edge.server_end, Some(SERVICES))?;
        let prometheus = Prometheus::start(prometheus, &edge.server, &deploy().join("prometheus"))?;
        Ok(Self {
            prometheus,
            guard,
            _servers: servers,
            edge,
        })
    }

    /// Ends the daemon without a warning.
    pub fn kill_daemon(&self) -> Result<()> {
        kill(self.guard.pid(), Signal::SIGKILL).context("cannot kill the daemon")
    }

    /// Plays some acts with clients all the while; when that began and ended, in seconds since the
    /// epoch. The last act is still on in the last sample.
    pub fn play(&self, acts: &[Act]) -> Result<(f64, f64)> {
        let mut clients = Vec::new();
        for (port, rate) in PORTS.into_iter().zip(CLIENTS) {
            let options = LoadOptions {
                sources: self.edge.client_sources(false),
                duration: Duration::from_secs(600),
                ..LoadOptions::new((SERVER_V4, port).into(), Pattern::Open(rate))
            };
            clients.push(LoadClient::start(&self.edge.client, options)?);
        }
        let begin = now();
        let mut end = begin;
        for act in acts {
            match *act {
                Act::Calm(time) => {
                    sleep(time);
                    end = now();
                }
                Act::Flood(kind, service, rate, time) => {
                    let flood = self.edge.flood(FloodSpec {
                        duration: time * 2,
                        ..FloodSpec::new(kind, Rate::Pps(rate), (SERVER_V4, PORTS[service]).into())
                    })?;
                    sleep(time);
                    end = now();
                    flood.stop()?;
                }
            }
        }
        for clients in clients {
            clients.stop()?;
        }
        Ok((begin, end))
    }
}

/// The folder of what is shipped beside the programs.
pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}
