//! Programs of our own that no interface has, and what they say of a packet.

use std::{collections::BTreeMap, io, net::IpAddr};

use anyhow::Context as _;
use aya::{
    maps::{MapError, lpm_trie::Key},
    programs::SchedClassifier,
};
use synguard_common::{
    abi::{
        ADMISSION_NONE, Address, AddressEntry, Clock, MODE_ADAPTIVE, MODE_ALWAYS, PortKey,
        SERVICE_NONE, STATE_GUARDED,
    },
    clock::EPOCH_NS,
    tables::Verdict,
    verdict::Action,
};

use super::{
    headers::{Endpoint, Headers},
    link::{Direction, Frame},
};
use crate::{
    daemon::{clock, keys::KeyRing, secret::Secret},
    dataplane::{
        Dataplane,
        load::{PROGRAM_IN, PROGRAM_OUT, PROGRAM_OUT_GENERIC},
        testrun::Runner,
        wire::{Wire, mapped},
        witness::Witness,
    },
};

/// `XDP_ABORTED`, which drops too, `XDP_DROP` and `XDP_TX`.
const XDP_ABORTED: u32 = 0;
const XDP_DROP: u32 = 1;
const XDP_TX: u32 = 3;
/// `TC_ACT_SHOT`.
const TC_SHOT: u32 = 2;
/// Kernels run a TC program on no more than a page, headroom included; frames below this always fit.
const FITS_PAGE: usize = 3000;

/// How the services stand when the first packet comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum State {
    /// Every service is calm, except those whose mode is `always`.
    Calm,
    /// Every service is guarded, except those whose mode is `observe` or that cannot be.
    Guarded,
}

/// What was said of a packet.
#[derive(Clone, Copy, Debug)]
pub enum Said {
    /// By a program, for a reason; without one it was none of the program's business.
    Ran(Action, Option<Verdict>),
    /// It does not fit a test run.
    TooLarge,
}

/// The programs, ready to be run.
pub struct Instance {
    dataplane: Dataplane,
    arriving: Runner,
    leaving: Runner,
    witness: Witness,
    /// Services there are, and their names where they are known.
    pub services: BTreeMap<u16, Option<String>>,
    /// The device that packets seem to come in by; 0 is loopback.
    ifindex: u32,
    /// Link-layer address of that device.
    mac: Option<Vec<u8>>,
    replay: Option<Replay>,
}

/// Sets the clock to when packets were captured.
struct Replay {
    keys: KeyRing,
    /// Jiffies when the programs were loaded.
    jiffies: u64,
    epoch: Option<u64>,
    wall_offset: u64,
}

impl Instance {
    /// With programs whose tables are filled. `generic`: what leaves does so by an interface whose XDP
    /// program runs in generic mode.
    pub fn new(
        mut dataplane: Dataplane,
        generic: bool,
        services: BTreeMap<u16, Option<String>>,
    ) -> anyhow::Result<Self> {
        let out = if generic {
            PROGRAM_OUT_GENERIC
        } else {
            PROGRAM_OUT
        };
        // That for generic mode is not loaded yet.
        dataplane.programs.get::<SchedClassifier>(out)?;
        Ok(Self {
            arriving: dataplane.runner(PROGRAM_IN)?,
            leaving: dataplane.runner(out)?,
            dataplane,
            witness: Witness::default(),
            services,
            ifindex: 0,
            mac: None,
            replay: None,
        })
    }

    /// Has packets come in by a device, where the kernel can pretend that: sockets bound to it are
    /// then found.
    pub fn come_in_by(&mut self, ifindex: u32, mac: &[u8]) {
        // An ARP request of nobody, which changes nothing.
        let mut frame = [0; 60];
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        if self.arriving.run_at(&frame, ifindex).is_ok() {
            self.ifindex = ifindex;
            // Counted; what follows is not to be taken for it.
            let _ = self
                .witness
                .verdict(&self.dataplane.maps.stats, &[SERVICE_NONE]);
        }
        // That of loopback is all zeros.
        self.mac = (mac.len() == 6 && mac.iter().any(|byte| *byte != 0)).then(|| mac.to_owned());
    }

    /// Makes keys from a secret, in place of those that are there.
    pub fn set_secret(&mut self, secret: &Secret) -> Result<(), MapError> {
        let epoch = clock::Offset::now().moment().epoch();
        KeyRing::new(secret).rotate(&mut self.dataplane.maps.keys, epoch)?;
        Ok(())
    }

    /// Lets it be the time at which each packet was captured, with keys from this secret.
    pub fn replay(&mut self, secret: &Secret) -> anyhow::Result<()> {
        let jiffies = self.dataplane.jiffies()?;
        let moment = jiffies
            .moment()
            .context("cannot read the kernel's jiffies")?;
        self.replay = Some(Replay {
            keys: KeyRing::new(secret),
            jiffies: moment.jiffies,
            epoch: None,
            wall_offset: clock::Offset::now().0,
        });
        Ok(())
    }

    /// Brings every service to `state`, as far as its mode and admission let it.
    pub fn set_state(&mut self, state: State) -> anyhow::Result<()> {
        let now = clock::monotonic_ns();
        let maps = &self.dataplane.maps;
        let mut any = false;
        for &number in self.services.keys() {
            let Wire(config) = maps
                .services
                .get(&number.into(), 0)
                .context("cannot read map SERVICES")?;
            let slot = maps.states.get(number).context("no such service")?;
            if state == State::Guarded && config.admission != ADMISSION_NONE {
                slot.turn_guarded(now);
            } else {
                slot.turn_calm(0);
            }
            any |= config.admission != ADMISSION_NONE
                && match config.mode {
                    MODE_ALWAYS => true,
                    MODE_ADAPTIVE => slot.read().state == STATE_GUARDED,
                    _ => false,
                };
        }
        // Slot 0 stands for all, as the daemon keeps it.
        let all = maps.states.get(SERVICE_NONE).context("no state of all")?;
        if any {
            all.turn_guarded(now);
        } else {
            all.turn_calm(0);
        }
        Ok(())
    }

    /// Which way a frame goes: to or from the device's own address, else to or from an address and
    /// port that a service covers. Where that is both or neither, what the capture says counts,
    /// which is how the machine that captured saw it, and that may be another.
    pub fn direction(&self, frame: &Frame<'_>, headers: &Headers) -> Result<Direction, MapError> {
        if let (Some(mac), Some((to, rest))) = (&self.mac, frame.bytes.split_at_checked(6))
            && frame.addressed
        {
            if to == mac.as_slice() {
                return Ok(Direction::In);
            }
            if rest.starts_with(mac) {
                return Ok(Direction::Out);
            }
        }
        if let Some((source, destination)) = headers.ends {
            let to = self.covering(destination)?.is_some();
            if to != self.covering(source)?.is_some() {
                return Ok(if to { Direction::In } else { Direction::Out });
            }
        }
        Ok(frame.direction.unwrap_or(Direction::In))
    }

    /// What the programs say of a frame, captured at `time`.
    pub fn ask(
        &mut self,
        frame: &[u8],
        headers: &Headers,
        direction: Direction,
        time: Option<u64>,
    ) -> anyhow::Result<Said> {
        if let Some(time) = time {
            self.set_clock(time)?;
        }
        let result = match direction {
            Direction::In => self.arriving.run_at(frame, self.ifindex),
            Direction::Out => self.leaving.run(frame),
        };
        let value = match result {
            Ok(value) => value,
            Err(error) if is_too_large(frame, &error) => return Ok(Said::TooLarge),
            Err(error) => return Err(error).context("cannot run the programs on it"),
        };
        let action = match (direction, value) {
            (Direction::In, XDP_ABORTED | XDP_DROP) | (Direction::Out, TC_SHOT) => Action::Drop,
            (Direction::In, XDP_TX) => Action::Answer,
            _ => Action::Pass,
        };
        Ok(Said::Ran(action, self.verdict(headers, direction)?))
    }

    /// The verdict that was just counted. The service that covers the packet is asked first, as
    /// reading counters is what takes the time.
    fn verdict(
        &mut self,
        headers: &Headers,
        direction: Direction,
    ) -> anyhow::Result<Option<Verdict>> {
        let end = headers.ends.map(|(source, destination)| match direction {
            Direction::In => destination,
            Direction::Out => source,
        });
        let likely = match end {
            Some(end) => self.covering(end)?.unwrap_or(SERVICE_NONE),
            None => SERVICE_NONE,
        };
        let stats = &self.dataplane.maps.stats;
        let mut verdict = self.witness.verdict(stats, &[likely])?;
        if verdict.is_none() && likely != SERVICE_NONE {
            verdict = self.witness.verdict(stats, &[SERVICE_NONE])?;
        }
        // Everything that arrives is counted; of what leaves only little is.
        if verdict.is_none() && direction == Direction::In {
            let rest: Vec<u16> = self.services.keys().copied().collect();
            verdict = self.witness.verdict(stats, &rest)?;
        }
        Ok(verdict)
    }

    /// The service of an address and port, looked up as the programs do; without a port, any
    /// service of the address.
    fn covering(&self, end: Endpoint) -> Result<Option<u16>, MapError> {
        let Some(entry) = self.entry(end.address)? else {
            return Ok(None);
        };
        let service = match end.port {
            Some(port) if entry.ports_id != 0 => {
                let key = PortKey {
                    ports_id: entry.ports_id,
                    port,
                    pad: 0,
                };
                let listed = found(self.dataplane.maps.ports.get(&Wire(key), 0))?;
                listed.map_or(entry.service, |Wire(port)| port.service)
            }
            Some(_) => entry.service,
            None => return Ok(Some(entry.service)),
        };
        Ok((service != SERVICE_NONE).then_some(service))
    }

    fn entry(&self, address: IpAddr) -> Result<Option<AddressEntry>, MapError> {
        let key = Wire(Address(mapped(address)));
        let maps = &self.dataplane.maps;
        let entry = match found(maps.addresses.get(&key, 0))? {
            Some(entry) => Some(entry),
            None => found(maps.prefixes.get(&Key::new(128, key), 0))?,
        };
        Ok(entry.map(|Wire(entry)| entry))
    }

    /// Sets the programs' clock, if they are to have one of their own.
    ///
    /// They tell the time by jiffies. With jiffies of a nanosecond and the offset that makes the
    /// jiffies counted so far the time wanted, the clock as good as stands still, until it is set
    /// again.
    fn set_clock(&mut self, wall: u64) -> anyhow::Result<()> {
        let Some(replay) = &mut self.replay else {
            return Ok(());
        };
        let epoch = wall / EPOCH_NS;
        if replay.epoch != Some(epoch) {
            replay
                .keys
                .rotate(&mut self.dataplane.maps.keys, epoch)
                .context("cannot write map KEYS")?;
            replay.epoch = Some(epoch);
        }
        let monotonic = wall.wrapping_sub(replay.wall_offset);
        let clock = Clock {
            wall_offset: replay.wall_offset,
            tick: clock::tick_at(monotonic),
            jiffy_ns: 1,
            jiffy_offset: monotonic.wrapping_sub(replay.jiffies),
        };
        let map = &mut self.dataplane.maps.clock;
        map.set(0, Wire(clock), 0).context("cannot write map CLOCK")
    }
}

/// A look-up that finds nothing is none that fails.
fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_too_large(frame: &[u8], error: &io::Error) -> bool {
    let refused = matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOMEM | libc::E2BIG | libc::EMSGSIZE)
    );
    refused && frame.len() > FITS_PAGE
}
