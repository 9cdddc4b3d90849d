//! What the programs under test find: a network namespace with listeners and connections, the tables
//! the daemon would write, and a service in the state that a path needs.

use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramFd;
use nix::time::{ClockId, clock_gettime};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use synguard::dataplane::{
    self, Dataplane, Options, Tables, apply,
    load::{PROGRAM_ADMIT, PROGRAM_OUT},
    stats,
    tables::{self, Facts, LocalAddress, Target},
    wire::{Wire, mapped},
};
use synguard_common::{
    abi::{
        ADMISSION_LOCAL, Address, Clock, EpochKey, HalfOpen, KEY_SLOTS, MODE_ADAPTIVE,
        MODE_OBSERVE, OFFER_ECN, OFFER_SACK, OFFER_TIMESTAMPS, OFFER_WINDOW_SCALE, REASON_SLOTS,
        SERVICE_NONE, ServiceConfig, Tuple,
    },
    clock::Now,
};

use super::{frames::Client, random::Random};
use crate::{
    client::{self, ConnectOptions},
    edge::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    http::{HttpServer, ServerOptions},
    netns::Netns,
};

/// The service everything happens to.
pub const SERVICE: u16 = 1;
/// The port that has listeners.
pub const PORT: u16 = 80;
/// The port of the HTTP server, which nothing is done with.
const HTTP: u16 = 8080;
/// Connections of each family.
const CONNECTIONS: usize = 16;
/// Index of the loopback device in every namespace.
const LOOPBACK: u32 = 1;

const CONFIG: ServiceConfig = ServiceConfig {
    // Calm paths stay calm, however many SYNs they track.
    high: u32::MAX,
    offers: OFFER_TIMESTAMPS | OFFER_SACK | OFFER_WINDOW_SCALE | OFFER_ECN,
    window: 64240,
    mode: MODE_ADAPTIVE,
    admission: ADMISSION_LOCAL,
    rcv_wscale: 7,
    ttl: 64,
    learns: 0,
    pad: 0,
    mss: 0,
    pad2: 0,
};

/// The state of the service on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Guarded, admission `local`, mode `adaptive`.
    Guarded,
    /// Guarded, in mode `observe`.
    Observe,
    /// Calm.
    Calm,
}

/// Everything a path is measured in; taken down on drop.
pub struct Scene {
    /// The loaded programs and their tables.
    pub dataplane: Dataplane,
    /// Where the test runs take place.
    pub ns: Netns,
    offset: u64,
    connections: Vec<TcpStream>,
    _server: HttpServer,
}

impl Scene {
    /// Builds the namespace and loads the programs.
    pub fn new() -> Result<Self> {
        let ns = Netns::create("bench")?;
        let ends = [
            (CLIENT_V4.into(), 24),
            (SERVER_V4.into(), 24),
            (CLIENT_V6.into(), 64),
            (SERVER_V6.into(), 64),
        ];
        ns.netlink(async |handle| {
            for (address, prefix) in ends {
                let mut request = handle.address().add(LOOPBACK, address, prefix);
                // Usable at once: whether anybody else has the address is no question here.
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
                request
                    .execute()
                    .await
                    .with_context(|| format!("cannot add address {address}/{prefix}"))?;
            }
            Ok(())
        })?;
        // The echo server, as the HTTP server ends connections that ask for nothing.
        let options = ServerOptions {
            port: HTTP,
            echo_port: Some(PORT),
            ..ServerOptions::default()
        };
        let server = HttpServer::start(&ns, options)?;
        let connections = connect(&ns)?;

        let mut dataplane = dataplane::load(&Options {
            half_open_entries: 65_536,
        })?;
        if let Some(reason) = &dataplane.local_error {
            bail!("the paths of `local` admission cannot be measured: {reason}");
        }
        let target = Target {
            number: SERVICE,
            name: "bench".into(),
            prefixes: None,
            ports: None,
            config: CONFIG,
        };
        let addresses = [SERVER_V4.into(), SERVER_V6.into()]
            .map(|address: IpAddr| LocalAddress { address, mtu: 1500 });
        let facts = Facts {
            addresses: addresses.into(),
            mtu: 1500,
            ..Facts::default()
        };
        let nothing = Tables::default();
        let tables = tables::compile(&[target], &facts, &nothing)?;
        apply::apply(&mut dataplane.maps, &nothing, &tables)?;

        let offset = nanos(ClockId::CLOCK_REALTIME)?.wrapping_sub(nanos(ClockId::CLOCK_MONOTONIC)?);
        dataplane
            .maps
            .clock
            .set(
                0,
                Wire(Clock {
                    tick: 0,
                    jiffy_ns: 0,
                    jiffy_offset: 0,
                    wall_offset: offset,
                }),
                0,
            )
            .context("cannot write CLOCK")?;
        let mut scene = Self {
            dataplane,
            ns,
            offset,
            connections,
            _server: server,
        };
        scene.write_keys()?;
        Ok(scene)
    }

    /// Fills the key ring, from the epoch before this one on: enough for the next minute and a half.
    pub fn write_keys(&mut self) -> Result<()> {
        let now = Now::new(nanos(ClockId::CLOCK_MONOTONIC)?, self.offset);
        for epoch in (now.epoch() - 1..).take(KEY_SLOTS as usize) {
            let mut random = Random::new(epoch);
            let key = EpochKey {
                epoch,
                k0: random.word(),
                k1: random.word(),
            };
            let slot = epoch % u64::from(KEY_SLOTS);
            let keys = &mut self.dataplane.maps.keys;
            keys.set(slot as u32, Wire(key), 0)
                .context("cannot write KEYS")?;
        }
        Ok(())
    }

    /// Both ends of every connection of a family that the server has, the client's first.
    pub fn connections(&self, v6: bool) -> Result<Vec<(SocketAddr, SocketAddr)>> {
        let ends = self
            .connections
            .iter()
            .map(|stream| Ok((stream.local_addr()?, stream.peer_addr()?)));
        let ends: Result<Vec<_>> = ends.collect();
        Ok(ends?
            .into_iter()
            .filter(|(client, _)| client.is_ipv6() == v6)
            .collect())
    }

    /// Puts the service into a state, with nothing half-open.
    pub fn enter(&mut self, state: State) -> Result<()> {
        let maps = &mut self.dataplane.maps;
        let left: Result<Vec<Wire<Tuple>>, _> = maps.half_open.keys().collect();
        for tuple in left.context("cannot read HALF_OPEN")? {
            maps.half_open
                .remove(&tuple)
                .context("cannot clear HALF_OPEN")?;
        }
        let mode = match state {
            State::Observe => MODE_OBSERVE,
            State::Guarded | State::Calm => MODE_ADAPTIVE,
        };
        // What is of no service is dropped or passed by whether any service is guarded for real.
        let now = nanos(ClockId::CLOCK_MONOTONIC)?;
        for (number, guarded) in [
            (SERVICE_NONE, state == State::Guarded),
            (SERVICE, state != State::Calm),
        ] {
            let slot = maps.states.get(number);
            let slot = slot.with_context(|| format!("STATES has no slot {number}"))?;
            slot.clear();
            if guarded {
                ensure!(
                    slot.turn_guarded(now),
                    "service {number} is guarded already"
                );
            }
        }
        let config = ServiceConfig { mode, ..CONFIG };
        maps.services
            .set(u32::from(SERVICE), Wire(config), 0)
            .context("cannot write SERVICES")
    }

    /// Enters a connection to the IPv4 listener in the half-open table, as if its SYN had passed.
    /// The count is not raised.
    pub fn track(&mut self, client: Client) -> Result<()> {
        let tuple = Tuple {
            client: Address(mapped(client.address.ip())),
            server: Address(mapped(SERVER_V4.into())),
            client_port: client.address.port(),
            server_port: PORT,
            pad: 0,
        };
        let entry = HalfOpen {
            since: nanos(ClockId::CLOCK_MONOTONIC)?,
            client_isn: client.isn,
            server_isn: 0,
            service: u32::from(SERVICE),
            confirmed: 0,
        };
        self.dataplane
            .maps
            .half_open
            .insert(Wire(tuple), Wire(entry), 0)
            .context("cannot write HALF_OPEN")
    }

    /// What the programs have counted so far.
    pub fn counts(&self) -> Result<Counts> {
        let read =
            |service| stats::read(&self.dataplane.maps.stats, service).context("cannot read STATS");
        let (none, ours) = (read(SERVICE_NONE)?, read(SERVICE)?);
        Ok(Counts {
            none: none.reasons,
            ours: ours.reasons,
            observed: ours.observed,
        })
    }

    /// The program `synguard_in`.
    pub fn program_in(&self) -> Result<ProgramFd> {
        Ok(self.dataplane.xdp()?.fd()?.try_clone()?)
    }

    /// The program `synguard_admit`.
    pub fn program_admit(&self) -> Result<ProgramFd> {
        self.classifier(PROGRAM_ADMIT)
    }

    /// The program `synguard_out`.
    pub fn program_out(&self) -> Result<ProgramFd> {
        self.classifier(PROGRAM_OUT)
    }

    fn classifier(&self, name: &str) -> Result<ProgramFd> {
        Ok(self.dataplane.classifier(name)?.fd()?.try_clone()?)
    }
}

/// Packets by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Of no service.
    pub none: [u64; REASON_SLOTS],
    /// Of the service.
    pub ours: [u64; REASON_SLOTS],
    /// Of the service in mode observe.
    pub observed: [u64; REASON_SLOTS],
}

fn connect(ns: &Netns) -> Result<Vec<TcpStream>> {
    let mut connections = Vec::new();
    for (source, target) in [
        (IpAddr::from(CLIENT_V4), IpAddr::from(SERVER_V4)),
        (CLIENT_V6.into(), SERVER_V6.into()),
    ] {
        for _ in 0..CONNECTIONS {
            let options = ConnectOptions {
                source: Some((source, 0).into()),
                ..ConnectOptions::default()
            };
            connections.push(client::connect(ns, (target, PORT).into(), &options)?);
        }
    }
    Ok(connections)
}

fn nanos(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock).context("cannot read a clock")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
