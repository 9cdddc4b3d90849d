//! Attaches the loaded programs to an interface, and takes them off again.
//!
//! The way out comes first, then admission, then XDP: a challenged client must never find its
//! ACK without admission. Detaching runs in reverse. Everything is undone on drop, so that an
//! attachment that fails half-way leaves nothing behind.

use std::collections::BTreeMap;

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaXdpMode,
        loaded_programs,
        tc::{NlOptions, SchedClassifierLink, TcAttachOptions},
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use tracing::{debug, warn};

use super::{
    error::{AttachError, MissingCapabilities, MtuHint, errno, one_line},
    load::{
        Dataplane, PROGRAM_ADMIT, PROGRAM_IN, PROGRAM_IN_GENERIC, PROGRAM_OUT, PROGRAM_OUT_GENERIC,
        program,
    },
    qdisc::Clsact,
};
use crate::model::XdpMode;

/// TC programs attach by link from here on.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

/// A network device, as far as attaching needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MTU.
    pub mtu: u32,
    /// Its driver, where the kernel tells.
    pub driver: Option<String>,
    /// Id of the XDP program that is attached to it.
    pub xdp_program: Option<u32>,
}

/// A TC program on a device. Fields are dropped in order: the program before the qdisc.
#[derive(Debug)]
struct Hook {
    _link: SchedClassifierLink,
    _clsact: Option<Clsact>,
}

/// The programs on one interface. Dropping it detaches them, XDP first.
#[derive(Debug)]
pub struct Attachment {
    _xdp: XdpLink,
    admit: BTreeMap<u32, Hook>,
    _out: Hook,
    /// How XDP runs: `native` or `generic`.
    pub xdp_mode: &'static str,
    /// The interface.
    pub index: u32,
    /// Its name when it was attached.
    pub name: String,
}

impl Attachment {
    /// Makes admission follow the VLAN devices on the interface. A packet with two tags is only
    /// IP to the kernel at the inner device's TC ingress, and a socket can only be given to IP.
    /// A device that refuses is retried on the next change.
    pub fn follow(&mut self, dataplane: &mut Dataplane, vlans: &[Device]) {
        if dataplane.local_error.is_some() {
            return;
        }
        let own = self.index;
        self.admit
            .retain(|index, _| *index == own || vlans.iter().any(|vlan| vlan.index == *index));
        for vlan in vlans {
            if self.admit.contains_key(&vlan.index) {
                continue;
            }
            match hook(
                &mut dataplane.ebpf,
                PROGRAM_ADMIT,
                vlan,
                TcAttachType::Ingress,
            ) {
                Ok(hook) => {
                    debug!(interface = vlan.name, "admission follows VLAN device");
                    self.admit.insert(vlan.index, hook);
                }
                Err(error) => warn!(%error, "connections over this VLAN cannot be admitted"),
            }
        }
    }
}

/// Attaches to `device` and admission also to `vlans`, the VLAN devices stacked on it.
pub fn attach(
    dataplane: &mut Dataplane,
    device: &Device,
    vlans: &[Device],
    mode: XdpMode,
) -> Result<Attachment, AttachError> {
    if let Some(program) = device.xdp_program {
        return Err(occupied(device, program));
    }
    // By guess: should the driver refuse, the other takes its place.
    let generic = mode == XdpMode::Generic;
    let out = hook_out(dataplane, device, generic)?;
    let mut admit = BTreeMap::new();
    if dataplane.local_error.is_none() {
        for device in std::iter::once(device).chain(vlans) {
            let hook = hook(
                &mut dataplane.ebpf,
                PROGRAM_ADMIT,
                device,
                TcAttachType::Ingress,
            )?;
            admit.insert(device.index, hook);
        }
    }
    let (xdp, xdp_mode) = attach_xdp(&mut dataplane.ebpf, device, mode)?;
    let out = match xdp_mode == GENERIC {
        now if now == generic => out,
        now => hook_out(dataplane, device, now)?,
    };
    Ok(Attachment {
        _xdp: xdp,
        admit,
        _out: out,
        xdp_mode,
        index: device.index,
        name: device.name.clone(),
    })
}

/// The way out, which must know whether what it sends back passes XDP once more.
fn hook_out(
    dataplane: &mut Dataplane,
    device: &Device,
    generic: bool,
) -> Result<Hook, AttachError> {
    let name = if generic {
        PROGRAM_OUT_GENERIC
    } else {
        PROGRAM_OUT
    };
    dataplane
        .out(generic)
        .map_err(|error| kernel(device, name, error.to_string()))?;
    hook(&mut dataplane.ebpf, name, device, TcAttachType::Egress)
}

/// As [`Attachment::xdp_mode`] has it.
const GENERIC: &str = "generic";

fn attach_xdp(
    ebpf: &mut Ebpf,
    device: &Device,
    mode: XdpMode,
) -> Result<(XdpLink, &'static str), AttachError> {
    if mode != XdpMode::Generic {
        match try_xdp(ebpf, device, AyaXdpMode::Driver) {
            Ok(link) => return Ok((link, "native")),
            Err(error @ AttachError::NativeUnsupported { .. }) if mode == XdpMode::Auto => {
                if let AttachError::NativeUnsupported {
                    name,
                    driver,
                    mtu,
                    reason,
                } = error
                {
                    warn!(
                        "driver {driver} of {name} refuses native XDP{mtu} ({reason}): using generic XDP, \
                         which is several times slower"
                    );
                }
            }
            Err(error) => return Err(error),
        }
    }
    try_xdp(ebpf, device, AyaXdpMode::Skb).map(|link| (link, GENERIC))
}

fn try_xdp(ebpf: &mut Ebpf, device: &Device, mode: AyaXdpMode) -> Result<XdpLink, AttachError> {
    let name = match mode {
        AyaXdpMode::Skb => PROGRAM_IN_GENERIC,
        _ => PROGRAM_IN,
    };
    let xdp: &mut Xdp = find(ebpf, name, device)?;
    if xdp.fd().is_err() {
        xdp.load()
            .map_err(|error| kernel(device, name, reason(&error)))?;
    }
    let link = xdp
        .attach_to_if_index(device.index, mode)
        .and_then(|id| xdp.take_link(id));
    link.map_err(|error| {
        let reason = reason(&error);
        match errno(&error) {
            Some(libc::EPERM) => denied(device),
            Some(libc::ENODEV) => gone(device, name),
            // Attached by somebody else since we looked.
            Some(libc::EBUSY | libc::EEXIST) => kernel(
                device,
                name,
                "another XDP program is attached to it: detach that first".into(),
            ),
            number if mode == AyaXdpMode::Driver => {
                let said = reason.to_lowercase();
                let too_large = number == Some(libc::ERANGE)
                    || said.contains("mtu")
                    || said.contains("too large");
                AttachError::NativeUnsupported {
                    name: device.name.clone(),
                    driver: device.driver.clone().unwrap_or_else(|| "(unknown)".into()),
                    mtu: MtuHint(too_large.then_some(device.mtu)),
                    reason,
                }
            }
            _ => kernel(device, name, reason),
        }
    })
}

fn hook(
    ebpf: &mut Ebpf,
    name: &'static str,
    device: &Device,
    direction: TcAttachType,
) -> Result<Hook, AttachError> {
    let tcx = KernelVersion::current().is_ok_and(|version| version >= TCX_SINCE);
    hook_by(ebpf, name, device, direction, tcx)
}

fn hook_by(
    ebpf: &mut Ebpf,
    name: &'static str,
    device: &Device,
    direction: TcAttachType,
    tcx: bool,
) -> Result<Hook, AttachError> {
    let (clsact, options) = if tcx {
        (None, TcAttachOptions::TcxOrder(LinkOrder::default()))
    } else {
        let clsact = Clsact::ensure(&device.name, device.index)
            .map_err(|error| refused(device, name, &ProgramError::TcError(error)))?;
        (clsact, TcAttachOptions::Netlink(NlOptions::default()))
    };
    let classifier: &mut SchedClassifier = find(ebpf, name, device)?;
    let link = classifier
        .attach_with_options(&device.name, direction, options)
        .and_then(|id| classifier.take_link(id))
        .map_err(|error| refused(device, name, &error))?;
    Ok(Hook {
        _link: link,
        _clsact: clsact,
    })
}

fn find<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
    device: &Device,
) -> Result<&'a mut P, AttachError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    program(ebpf, name).map_err(|error| kernel(device, name, error.to_string()))
}

fn refused(device: &Device, program: &'static str, error: &ProgramError) -> AttachError {
    match errno(error) {
        Some(libc::EPERM) => denied(device),
        Some(libc::ENODEV) => gone(device, program),
        _ => kernel(device, program, reason(error)),
    }
}

fn denied(device: &Device) -> AttachError {
    let missing = MissingCapabilities(vec!["CAP_NET_ADMIN".into(), "CAP_BPF".into()]);
    AttachError::Capability {
        name: device.name.clone(),
        missing,
    }
}

fn gone(device: &Device, program: &'static str) -> AttachError {
    kernel(device, program, "the interface has just vanished".into())
}

fn kernel(device: &Device, program: &'static str, reason: String) -> AttachError {
    AttachError::Kernel {
        name: device.name.clone(),
        program,
        reason,
    }
}

fn occupied(device: &Device, id: u32) -> AttachError {
    let info = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id);
    let program_name = info
        .as_ref()
        .and_then(|info| info.name_as_str())
        .unwrap_or("?")
        .to_owned();
    let name = device.name.clone();
    if [PROGRAM_IN, PROGRAM_IN_GENERIC].contains(&program_name.as_str()) {
        AttachError::AlreadyGuarded {
            name,
            program: id,
            program_name,
        }
    } else {
        AttachError::Occupied {
            name,
            program: id,
            program_name,
        }
    }
}

/// What the kernel said, without the name of the system call.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(syscall) => syscall.io_error.to_string(),
        other => one_line(other),
    }
}
