//! Looks at the machine.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context as _;
use aya::Btf;
use aya_obj::btf::BtfKind;
use futures_util::TryStreamExt as _;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use procfs::{Current as _, Meminfo};
use rtnetlink::RouteMessageBuilder;

use super::{
    facts::{Facts, Host, Interface, Kernel, Missing, Peer, Programs, Seen, Unseen},
    genl, helpers, memory, namespace,
};
use crate::{
    config::{self, DEFAULT_PATH, Overrides},
    daemon::{
        links::{Link, Netlink, World},
        startup::missing_capabilities,
    },
    dataplane::{
        self, LoadError, Options,
        attach::{has_tcx, program_name},
        error::NearNames,
        kfunc::KFUNCS,
        load::{self, PROGRAM_PASS, kernel_release},
        pins::{BPFFS, is_bpffs},
    },
    tune::host::{DEFAULT_FILE, Host as Settings},
};

/// Entries of the tables that the programs are tried with.
const FEW: u32 = 1024;

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Interfaces; none for those that matter.
    pub interfaces: Vec<String>,
    /// Configuration file.
    pub config: Option<PathBuf>,
}

/// Looks at everything.
pub fn probe(request: &Request) -> anyhow::Result<Facts> {
    let (world, default_routes) = discover()?;
    let settings = Settings::new(Path::new("/"), Path::new(DEFAULT_FILE))?;
    let host = host(request.config.as_deref(), &world, &settings);
    let configured = host.config.iter().flat_map(|config| &config.interfaces);
    let configured: Vec<String> = configured.cloned().collect();
    let names = [&request.interfaces, &configured]
        .into_iter()
        .find(|names| !names.is_empty())
        .cloned()
        .unwrap_or_else(|| that_matter(&world, &default_routes));
    let interfaces = names
        .into_iter()
        .map(|name| match world.by_name(&name) {
            Some(link) => Ok(interface(link, &world, &settings)),
            None => Err(Missing {
                hint: NearNames::new(&name, world.names()),
                name,
            }),
        })
        .collect();
    Ok(Facts {
        kernel: kernel(&settings),
        host,
        interfaces,
    })
}

/// Devices and addresses, and the devices that a default route leaves by.
fn discover() -> anyhow::Result<(World, BTreeSet<u32>)> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let world = Netlink::connect()?.discover().await?;
            Ok((world, default_routes().await?))
        })
}

async fn default_routes() -> anyhow::Result<BTreeSet<u32>> {
    let (connection, handle, _) =
        rtnetlink::new_connection().context("cannot open an rtnetlink socket")?;
    tokio::spawn(connection);
    let mut devices = BTreeSet::new();
    for every in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let routes: Vec<RouteMessage> = handle
            .route()
            .get(every)
            .execute()
            .try_collect()
            .await
            .context("cannot list the routes")?;
        for route in routes {
            if route.header.destination_prefix_length > 0 {
                continue;
            }
            for attribute in &route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => {
                        devices.insert(*index);
                    }
                    RouteAttribute::MultiPath(hops) => {
                        devices.extend(hops.iter().map(|hop| hop.interface_index));
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(devices)
}

/// The interfaces a flood may come in by.
fn that_matter(world: &World, default_routes: &BTreeSet<u32>) -> Vec<String> {
    let matters = |link: &&Link| {
        let is_card = link.details.kind.is_none() && link.device.driver.is_some();
        // IPv6 has an unreachable default route on loopback.
        let is_loopback = link.device.name == "lo";
        (default_routes.contains(&link.device.index) && !is_loopback) || (link.up && is_card)
    };
    let links = world.links().iter().filter(matters);
    links.map(|link| link.device.name.clone()).collect()
}

fn kernel(settings: &Settings) -> Kernel {
    let btf = Btf::from_sys_fs().ok();
    let missing_kfuncs = KFUNCS
        .iter()
        .map(|kfunc| kfunc.name)
        .filter(|name| {
            let there = |btf: &Btf| btf.id_by_type_name_kind(name, BtfKind::Func).is_ok();
            !btf.as_ref().is_some_and(there)
        })
        .collect();
    Kernel {
        release: kernel_release(),
        btf: btf.is_some(),
        missing_kfuncs,
        helpers: helpers::probe(),
        tcx: has_tcx().map_err(|error| helpers::unseen(&error)),
        programs: programs(),
        jit_enabled: number(settings, "net.core.bpf_jit_enable"),
    }
}

/// Loads the programs as the daemon does, with small tables, and lets them go.
fn programs() -> Seen<Programs> {
    let options = Options {
        half_open_entries: FEW,
        flow_entries: FEW,
        verified_entries: FEW,
    };
    let usual = || -> Result<Programs, LoadError> {
        let dataplane = dataplane::load(&options)?;
        let info = dataplane.xdp()?.info();
        Ok(Programs {
            refused: None,
            jited: info.is_ok_and(|info| info.size_jitted() > 0),
            live_frames: dataplane.runner(PROGRAM_PASS)?.knows_live_frames(),
        })
    };
    // Each is a second of the verifier's work.
    let loaded = thread::scope(|scope| {
        let generic = scope.spawn(|| load::try_generic(&options));
        let usual = usual()?;
        match generic.join() {
            Ok(generic) => generic.map(|()| usual),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    match loaded {
        Ok(programs) => Ok(programs),
        Err(LoadError::Capability(_)) => Err(Unseen::NeedsRoot),
        Err(error) => Ok(Programs {
            refused: Some(error.to_string()),
            jited: false,
            live_frames: false,
        }),
    }
}

fn host(config_path: Option<&Path>, world: &World, settings: &Settings) -> Host {
    let installed = Path::new(DEFAULT_PATH);
    let config_path = config_path.or_else(|| installed.exists().then_some(installed));
    let config = config::load(config_path, &Overrides::default());
    let cpus = aya::util::nr_cpus().ok();
    let tables = config
        .as_ref()
        .ok()
        .zip(cpus)
        .and_then(|(config, cpus)| memory::of_tables(config, cpus as u64).ok());
    Host {
        missing_capabilities: missing_capabilities(),
        is_root: rustix::process::geteuid().is_root(),
        bpffs: is_bpffs(Path::new(BPFFS)),
        config_path: config_path.map(Path::to_owned),
        config: config.map_err(|error| error.to_string()),
        tables,
        available: Meminfo::current().ok().and_then(|m| m.mem_available),
        cpus: aya::util::online_cpus().map_or(1, |cpus| cpus.len() as u32),
        addresses: world.all_addresses().collect(),
        syncookies: number(settings, "net.ipv4.tcp_syncookies"),
        timestamps: number(settings, "net.ipv4.tcp_timestamps"),
        forwards_v4: number(settings, "net.ipv4.ip_forward"),
        forwards_v6: number(settings, "net.ipv6.conf.all.forwarding"),
    }
}

fn number(settings: &Settings, key: &str) -> Option<u8> {
    settings.read(key)?.value.parse().ok()
}

fn interface(link: &Link, world: &World, settings: &Settings) -> Interface {
    let (device, details) = (&link.device, &link.details);
    let name_of = |index: u32| world.by_index(index).map(|link| link.device.name.clone());
    let is_veth = details.kind.as_deref() == Some("veth");
    let below = details.other.filter(|_| details.other_namespace.is_none());
    let controller = details.controller.and_then(|index| world.by_index(index));
    let ports = world.links().iter();
    let rp_filter = |of: &str| {
        // Names within settings have their dots and slashes changed.
        let key = format!("net.ipv4.conf.{}.rp_filter", of.replace('.', "/"));
        number(settings, &key)
    };
    Interface {
        xdp: genl::xdp_features(device.index),
        offloads: genl::offloads(device.index),
        channels: genl::channels(device.index),
        vlans: world
            .vlans_on(device.index)
            .into_iter()
            .map(|vlan| vlan.name)
            .collect(),
        lower: below.filter(|_| !is_veth).and_then(name_of),
        controller: controller.map(|above| {
            let kind = above.details.kind.clone().unwrap_or_default();
            (above.device.name.clone(), kind)
        }),
        ports: ports
            .filter(|port| port.details.controller == Some(device.index))
            .map(|port| port.device.name.clone())
            .collect(),
        peer: details
            .other
            .filter(|_| is_veth)
            .map(|index| match details.other_namespace {
                None => peer(index, world, false),
                Some(number) => namespace::within(number, || {
                    let other = |error: anyhow::Error| Unseen::Other(format!("{error:#}"));
                    let (world, _) = discover().map_err(other)?;
                    peer(index, &world, true)
                }),
            }),
        program: device.xdp_program.and_then(program_name),
        rp_filter: rp_filter(&device.name).max(rp_filter("all")),
        link: link.clone(),
    }
}

fn peer(index: u32, world: &World, elsewhere: bool) -> Seen<Peer> {
    let link = world
        .by_index(index)
        .ok_or_else(|| Unseen::Other("it has just vanished".into()))?;
    Ok(Peer {
        name: link.device.name.clone(),
        elsewhere,
        mtu: link.device.mtu,
        has_xdp: link.device.xdp_program.is_some(),
        offloads: genl::offloads(index)
            .ok_or_else(|| Unseen::Other("the kernel does not tell its offloads".into()))?,
        channels: genl::channels(index),
    })
}
