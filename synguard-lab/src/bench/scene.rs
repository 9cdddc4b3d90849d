//! What the programs under test find: a network namespace with listeners and connections, the tables
//! the daemon would write, and a service in the state that a path needs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramFd;
use nix::time::{ClockId, clock_gettime};
use rtnetlink::packet_route::address::AddressHeaderFlags;
use synguard::dataplane::{
    self, Dataplane, FlowMaps, Options, Tables, apply,
    load::{PROGRAM_ADMIT, PROGRAM_OUT},
    sources,
    states::SharedState,
    stats,
    tables::{self, Facts, LocalAddress, Target},
    wire::{Wire, mapped},
};
use synguard_common::{
    abi::{
        ADMISSION_PROXY, ADMISSION_RESET, Clock, EpochKey, HalfOpen, KEY_SLOTS, LINK_HEADER,
        MODE_ADAPTIVE, MODE_OBSERVE, REASON_SLOTS, SERVICE_NONE, SOURCE_BLOCKED, ServiceConfig,
        SourceEntry, Tuple,
    },
    clock::Now,
    profile::Profile,
};

use super::{
    flows::{Flows, tuple},
    frames::{self, Client, Kind},
    random::Random,
};
use crate::{
    client::{self, ConnectOptions},
    edge::{CLIENT_V4, CLIENT_V6, SERVER_V4, SERVER_V6},
    host,
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
    ..host::SERVICE
};

/// What a valid answer to a cookie becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// `local`.
    Local,
    /// `proxy`.
    Proxy,
    /// `reset`.
    Reset,
}

impl Admission {
    /// The service's entry in `SERVICES`, as the daemon writes it.
    fn config(self) -> ServiceConfig {
        match self {
            Self::Local => CONFIG,
            Self::Proxy => ServiceConfig {
                admission: ADMISSION_PROXY,
                rcv_wscale: 0,
                learns: 1,
                ..CONFIG
            },
            Self::Reset => ServiceConfig {
                admission: ADMISSION_RESET,
                offers: 0,
                rcv_wscale: 0,
                ..CONFIG
            },
        }
    }
}

/// The state of the service on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Guarded, mode `adaptive`.
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
    flows: FlowMaps,
    sources: sources::Table,
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

        let options = Options {
            // The table is emptied before each path, bucket by bucket: no larger than a ring of
            // packets needs.
            flow_entries: 4096,
            ..Options::default()
        };
        let mut dataplane = dataplane::load(&options)?;
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

        let (jiffy_ns, jiffy_offset) = jiffies(&mut dataplane)?;
        let offset = nanos(ClockId::CLOCK_REALTIME)?.wrapping_sub(nanos(ClockId::CLOCK_MONOTONIC)?);
        dataplane
            .maps
            .clock
            .set(
                0,
                Wire(Clock {
                    tick: 0,
                    jiffy_ns,
                    jiffy_offset,
                    wall_offset: offset,
                }),
                0,
            )
            .context("cannot write CLOCK")?;
        let flows = dataplane.maps.flows.take();
        let flows = flows.context("the programs have no flow table")?;
        let mut scene = Self {
            dataplane,
            ns,
            flows,
            sources: Vec::new(),
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

    /// Gives the service an admission and a mode, and makes it calm, with nothing half-open and no
    /// flows.
    pub fn calm(&mut self, admission: Admission, state: State) -> Result<()> {
        self.clear_flows()?;
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
        let config = ServiceConfig {
            mode,
            ..admission.config()
        };
        maps.services
            .set(u32::from(SERVICE), Wire(config), 0)
            .context("cannot write SERVICES")?;
        maps.change_runtime(|runtime| runtime.forwards = u32::from(admission == Admission::Proxy))
            .context("cannot write RUNTIME")?;
        for number in [SERVICE_NONE, SERVICE] {
            self.slot(number)?.clear();
        }
        Ok(())
    }

    /// Blocks so many random addresses of IPv4, none of a client. Without any the programs do not look,
    /// and the list stays for the next path.
    pub fn block_sources(&mut self, count: usize) -> Result<()> {
        let maps = &mut self.dataplane.maps;
        if count > 0 && count != self.sources.len() {
            let mut random = Random::new(7);
            let mut addresses = BTreeSet::new();
            let clients: Vec<IpAddr> = frames::clients(Kind::V4)
                .map(|client| client.address.ip())
                .chain([CLIENT_V4.into()])
                .collect();
            while addresses.len() < count {
                let address = IpAddr::from(Ipv4Addr::from_bits(random.word() as u32));
                if !clients.contains(&address) {
                    addresses.insert(mapped(address));
                }
            }
            let entry = SourceEntry {
                list: SOURCE_BLOCKED,
                until: 0,
            };
            let table = addresses.into_iter().map(|address| ((128, address), entry));
            sources::apply(maps, &mut self.sources, table.collect())?;
        }
        maps.change_runtime(|runtime| runtime.has_sources = u32::from(count > 0))
            .context("cannot write RUNTIME")
    }

    /// Turns the calm service guarded, if that is the state to be in.
    pub fn guard(&mut self, state: State) -> Result<()> {
        // What is of no service is dropped or passed by whether any service is guarded for real.
        let guarded: &[u16] = match state {
            State::Guarded => &[SERVICE_NONE, SERVICE],
            State::Observe => &[SERVICE],
            State::Calm => &[],
        };
        let now = nanos(ClockId::CLOCK_MONOTONIC)?;
        for number in guarded {
            ensure!(
                self.slot(*number)?.turn_guarded(now),
                "service {number} is guarded already"
            );
        }
        Ok(())
    }

    /// Whether the programs have learned what the service's server offers.
    pub fn has_profile(&self) -> Result<bool> {
        Ok(Profile(self.slot(SERVICE)?.read().profile).learned())
    }

    fn slot(&self, number: u16) -> Result<&SharedState> {
        let slot = self.dataplane.maps.states.get(number);
        slot.with_context(|| format!("STATES has no slot {number}"))
    }

    /// Enters flows.
    pub fn enter_flows(&mut self, flows: Flows) -> Result<()> {
        for (tuple, entry) in flows.entries() {
            let entered = self
                .flows
                .table
                .insert(&tuple, entry)
                .context("cannot write FLOWS")?;
            ensure!(entered, "no room in FLOWS");
        }
        Ok(())
    }

    /// Removes flows, as far as they are there.
    pub fn remove_flows(&mut self, tuples: &[Tuple]) -> Result<()> {
        self.flows
            .table
            .remove(tuples)
            .context("cannot clear FLOWS")
    }

    fn clear_flows(&mut self) -> Result<()> {
        let left = self.flows.table.entries().context("cannot read FLOWS")?;
        let left: Vec<Tuple> = left.into_iter().map(|(tuple, _)| tuple).collect();
        self.remove_flows(&left)
    }

    /// Enters a connection to the IPv4 listener in the half-open table, as if its SYN had passed.
    /// The count is not raised.
    pub fn track(&mut self, client: Client) -> Result<()> {
        let tuple = tuple(client.address, (SERVER_V4, PORT).into());
        let entry = HalfOpen {
            since: nanos(ClockId::CLOCK_MONOTONIC)?,
            client_isn: client.isn,
            server_isn: 0,
            service: SERVICE,
            confirmed: 0,
            link_len: 0,
            link: [0; LINK_HEADER / 4],
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

/// Length of a jiffy and monotonic time less the jiffies', ns, as the daemon finds them out; zeros
/// where it would not either.
fn jiffies(dataplane: &mut Dataplane) -> Result<(u32, u64)> {
    const ENOUGH: Duration = Duration::from_secs(2);
    let mut jiffies = dataplane.jiffies()?;
    let start = Instant::now();
    loop {
        let known = jiffies
            .now()
            .context("cannot compare the kernel's clocks")?;
        if known.0 != 0 || start.elapsed() > ENOUGH {
            return Ok(known);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn nanos(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock).context("cannot read a clock")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
