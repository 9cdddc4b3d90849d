//! Programs with the tables that a daemon would fill them with at its start, from a configuration.

use std::{collections::BTreeMap, path::Path};

use anyhow::Context as _;
use synguard_common::abi::Runtime;

use super::instance::Instance;
use crate::{
    config::{self, Overrides},
    daemon::{
        clock,
        links::World,
        listeners, lists,
        plan::{Circumstances, USUAL_MTU},
        service::Running,
        sysctl::{self, Tcp},
        tuning::Tuning,
    },
    dataplane::{
        Options, Tables, apply,
        error::{AttachError, NearNames},
        load_inert, sources,
        wire::Wire,
    },
    journal::Timestamp,
    lists::{Live, in_force},
};

/// Loads programs for the configuration at `path`, as if the daemon guarded `interfaces`; without any,
/// those that it names, and where it names none, all but loopback.
pub fn plan(path: &Path, interfaces: &[String], world: &World) -> anyhow::Result<Instance> {
    let config = config::load(Some(path), &Overrides::default())?;
    let live = match &config.state {
        Some(state) => lists::read_kept(state)?,
        None => Live::default(),
    };
    let named = if interfaces.is_empty() {
        &config.interfaces
    } else {
        interfaces
    };
    let interfaces = indices(named, world)?;
    let options = Options {
        half_open_entries: config.half_open_entries,
        flow_entries: config.flow_entries,
        verified_entries: config.verified_entries,
    };
    let mut dataplane = load_inert(&options)?;
    let tcp = Tcp::read(Path::new(sysctl::ROOT));
    let listeners = listeners::list().context("cannot list the TCP listeners")?;
    let circumstances = Circumstances {
        local_error: dataplane.local_error.as_deref(),
        world,
        interfaces: &interfaces,
        tcp: &tcp,
        rcv_wscale: tcp.profile(USUAL_MTU).rcv_wscale,
        listeners: &listeners,
        tuning: &Tuning::default(),
    };
    let mut services: Vec<Running> = (1..)
        .zip(&config.services)
        .map(|(number, service)| Running::new(number, service.clone()))
        .collect();
    let tables = circumstances.plan(&mut services, &Tables::default())?;
    let maps = &mut dataplane.maps;
    apply::apply(maps, &Tables::default(), &tables)?;
    let in_force = in_force(&config.sources.listed, &live, Timestamp::now());
    sources::apply(maps, &mut Vec::new(), lists::table(&in_force))?;
    let tick = clock::tick();
    maps.change_runtime(|runtime| {
        *runtime = Runtime {
            forwards: services.iter().any(Running::is_proxied).into(),
            // A daemon that has run for a while: unknown segments do not pass any more.
            settled_at: tick,
            verified_ticks: clock::ticks(config.verified_timeout),
            flow_idle_ticks: clock::ticks(config.flow_idle_timeout),
            syn_budget: config.sources.syn_budget,
            answer_budget: config.sources.answer_budget,
            ..*runtime
        };
    })
    .context("cannot write map RUNTIME")?;
    let clock = synguard_common::abi::Clock {
        wall_offset: clock::Offset::now().0,
        tick,
        ..Default::default()
    };
    maps.clock
        .set(0, Wire(clock), 0)
        .context("cannot write map CLOCK")?;
    let names: BTreeMap<_, _> = services
        .iter()
        .map(|running| (running.number, Some(running.service.name.clone())))
        .collect();
    Instance::new(dataplane, false, names)
}

fn indices(names: &[String], world: &World) -> anyhow::Result<Vec<u32>> {
    if names.is_empty() {
        let others = world.links().iter().filter(|link| link.device.name != "lo");
        return Ok(others.map(|link| link.device.index).collect());
    }
    let mut indices = Vec::new();
    for name in names {
        let link = world
            .by_name(name)
            .ok_or_else(|| AttachError::UnknownInterface {
                name: name.clone(),
                hint: NearNames::new(name, world.names()),
            })?;
        indices.push(link.device.index);
    }
    Ok(indices)
}
