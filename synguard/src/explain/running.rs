//! A copy of the programs that guard an interface here, with all that their tables hold: what they
//! would say now, without anything being counted or changed.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use aya::{
    Pod,
    maps::{Array, LpmTrie, Map, MapData},
    programs::{ProgramInfo, loaded_programs},
};
use synguard_common::{
    abi::{self, Address, AddressEntry, Runtime, ServiceConfig, SourceEntry, map},
    flowtable::flows_for,
};

use super::instance::Instance;
use crate::{
    daemon::links::{Link, World},
    dataplane::{
        Options, copy,
        error::{NearNames, errno, one_line},
        load::{PROGRAM_IN, PROGRAM_IN_GENERIC},
        load_inert,
        wire::Wire,
    },
};

/// What is copied as it is. Counters are not, nor what programs keep for the length of a packet.
const COPIED: [&str; 10] = [
    map::SERVICES,
    map::PORTS,
    map::ADDRESSES,
    map::STATES,
    map::KEYS,
    map::CLOCK,
    map::RUNTIME,
    map::HALF_OPEN,
    map::VERIFIED,
    map::ADMISSIONS,
];

/// Programs at work.
pub struct Running {
    /// The interface.
    pub interface: Link,
    generic: bool,
    maps: Maps,
}

/// The tables of a program, by name.
struct Maps(BTreeMap<String, MapData>);

impl Running {
    /// Those on the interface `name`; without a name, those on any, if they are of one daemon.
    pub fn find(world: &World, name: Option<&str>) -> anyhow::Result<Self> {
        let programs = programs()?;
        let mut guarded = Vec::new();
        for link in world.links() {
            let id = link.device.xdp_program;
            let Some(program) = programs.iter().find(|program| Some(program.id()) == id) else {
                continue;
            };
            let generic = match program.name_as_str() {
                Some(PROGRAM_IN) => false,
                Some(PROGRAM_IN_GENERIC) => true,
                _ => continue,
            };
            guarded.push((link, generic, program));
        }
        if let Some(name) = name {
            if world.by_name(name).is_none() {
                bail!("no interface {name}{}", NearNames::new(name, world.names()));
            }
            guarded.retain(|(link, ..)| link.device.name == name);
        }
        let place = name.map_or_else(|| "no interface".to_owned(), |name| format!("not {name}"));
        let mut found: Option<(Self, u32)> = None;
        for (link, generic, program) in guarded {
            let maps = Maps::of(program)?;
            let states = maps.get(map::STATES)?.info()?.id();
            match &found {
                None => {
                    let running = Self {
                        interface: link.clone(),
                        generic,
                        maps,
                    };
                    found = Some((running, states));
                }
                // Another interface of the same daemon, with the same tables.
                Some((_, of)) if *of == states => {}
                Some((first, _)) => bail!(
                    "{} and {} are guarded by different daemons: say which with --interface",
                    first.interface.device.name,
                    link.device.name
                ),
            }
        }
        let (running, _) = found.with_context(|| {
            format!("{place} is guarded by synguard here: start it, or explain with --config FILE")
        })?;
        running.check_version()?;
        Ok(running)
    }

    /// Programs of the same kind with a copy of what these know.
    pub fn copy(&self, names: &BTreeMap<u16, String>) -> anyhow::Result<Instance> {
        let entries = |name| anyhow::Ok(self.maps.get(name)?.info()?.max_entries());
        let runtime = self.runtime()?;
        let buckets = entries(map::FLOWS)?;
        let options = Options {
            half_open_entries: entries(map::HALF_OPEN)?,
            flow_entries: flows_for(buckets),
            verified_entries: entries(map::VERIFIED)?,
        };
        let dataplane = load_inert(&options)?;
        let info = dataplane
            .xdp()?
            .info()
            .context("cannot look at the loaded program")?;
        let copies = Maps::of(&info)?;
        for name in COPIED {
            copy_table(&self.maps, &copies, name)?;
        }
        // Of a hundred megabytes, and empty unless a service is proxied, or was.
        if runtime.forwards != 0 {
            copy_table(&self.maps, &copies, map::FLOWS)?;
        }
        self.copy_trie::<AddressEntry>(map::PREFIXES, &copies)?;
        self.copy_trie::<SourceEntry>(map::SOURCES, &copies)?;
        let services = self.services(names)?;
        let mut instance = Instance::new(dataplane, self.generic, services)?;
        instance.come_in_by(self.interface.device.index, &self.interface.mac);
        Ok(instance)
    }

    /// Kernels before 5.17 cannot read tries in batches.
    fn copy_trie<V>(&self, name: &str, copies: &Maps) -> anyhow::Result<()>
    where
        Wire<V>: Pod,
    {
        type Trie<V> = LpmTrie<MapData, Wire<Address>, Wire<V>>;
        let open = |maps: &Maps| -> anyhow::Result<Trie<V>> {
            Ok(LpmTrie::try_from(Map::LpmTrie(maps.again(name)?))?)
        };
        let copied = || -> anyhow::Result<()> {
            let mut to = open(copies)?;
            for entry in open(&self.maps)?.iter() {
                let (key, value) = entry?;
                to.insert(&key, value, 0)?;
            }
            Ok(())
        };
        copied().with_context(|| format!("cannot copy map {name}"))
    }

    /// The services, by what the tables say; only the daemon knows their names.
    fn services(
        &self,
        names: &BTreeMap<u16, String>,
    ) -> anyhow::Result<BTreeMap<u16, Option<String>>> {
        let services: Array<MapData, Wire<ServiceConfig>> =
            Array::try_from(Map::Array(self.maps.again(map::SERVICES)?))?;
        let mut found = BTreeMap::new();
        for number in 1..u16::try_from(services.len()).unwrap_or(u16::MAX) {
            let Wire(config) = services.get(&number.into(), 0)?;
            // What stands for no service has none.
            if config.ttl != 0 {
                found.insert(number, names.get(&number).cloned());
            }
        }
        Ok(found)
    }

    fn runtime(&self) -> anyhow::Result<Runtime> {
        let runtime: Array<MapData, Wire<Runtime>> =
            Array::try_from(Map::Array(self.maps.again(map::RUNTIME)?))?;
        let Wire(runtime) = runtime.get(&0, 0)?;
        Ok(runtime)
    }

    fn check_version(&self) -> anyhow::Result<()> {
        const ADVICE: &str = "explain with the synguard that guards it, or with --config FILE";
        let name = &self.interface.device.name;
        let size = self.maps.get(map::RUNTIME)?.info()?.value_size() as usize;
        if size != size_of::<Runtime>() {
            bail!("the programs on {name} are of another version of synguard: {ADVICE}");
        }
        let version = self.runtime()?.abi_version;
        if version != abi::ABI_VERSION {
            bail!(
                "the programs on {name} are of another version of synguard (tables of version \
                 {version}, not {}): {ADVICE}",
                abi::ABI_VERSION
            );
        }
        Ok(())
    }
}

impl Maps {
    fn of(program: &ProgramInfo) -> anyhow::Result<Self> {
        let ids = program
            .map_ids()
            .context("cannot look at the tables of the programs")?
            .unwrap_or_default();
        let mut maps = BTreeMap::new();
        for id in ids {
            let data = MapData::from_id(id).context("cannot open a table of the programs")?;
            if let Some(name) = data.info()?.name_as_str() {
                maps.insert(name.to_owned(), data);
            }
        }
        Ok(Self(maps))
    }

    fn get(&self, name: &str) -> anyhow::Result<&MapData> {
        self.0.get(name).with_context(|| {
            format!("the programs have no table {name}: they are of another version of synguard")
        })
    }

    /// A second handle.
    fn again(&self, name: &str) -> anyhow::Result<MapData> {
        Ok(MapData::from_id(self.get(name)?.info()?.id())?)
    }
}

fn copy_table(from: &Maps, to: &Maps, name: &str) -> anyhow::Result<()> {
    copy::copy(from.get(name)?, to.get(name)?)
        .with_context(|| format!("cannot copy map {name}"))?;
    Ok(())
}

/// All programs that are loaded.
fn programs() -> anyhow::Result<Vec<ProgramInfo>> {
    let mut programs = Vec::new();
    for program in loaded_programs() {
        match program {
            Ok(program) => programs.push(program),
            // One that ended while we looked.
            Err(error) if errno(&error) == Some(libc::ENOENT) => {}
            Err(error) if errno(&error) == Some(libc::EPERM) => return Err(denied()),
            Err(error) => bail!("cannot list the loaded programs: {}", one_line(&error)),
        }
    }
    Ok(programs)
}

fn denied() -> anyhow::Error {
    anyhow::anyhow!(
        "not allowed to look at the programs that run: CAP_SYS_ADMIN missing: run as root, or \
         grant it"
    )
}
