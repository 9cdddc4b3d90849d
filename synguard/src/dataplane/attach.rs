//! Attaches the loaded programs to an interface, and takes them off again.
//!
//! The way out comes first, then admission, then XDP: a challenged client must never find its
//! ACK without admission. Detaching runs in reverse. Everything is undone on drop, so that an
//! attachment that fails half-way leaves nothing behind; what is pinned ([`super::pins`]) stays, and
//! may be taken over.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaXdpMode,
        links::{FdLink, LinkError, PinnedLink},
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
    },
    pins::{self, PinError, Pins},
    programs::Programs,
    qdisc::Clsact,
};
use crate::model::XdpMode;

/// TC programs attach by link from here on.
const TCX_SINCE: KernelVersion = KernelVersion::new(6, 6, 0);

/// Whether everything attaches by links, which can be pinned: asked of the kernel, as distributions
/// bring it to older ones.
pub fn can_pin() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let by_age = || KernelVersion::current().is_ok_and(|version| version >= TCX_SINCE);
        has_tcx().unwrap_or_else(|_| by_age())
    })
}

/// Asks which programs TCX runs somewhere: a kernel without it does not know the question. An error
/// is that we may not ask.
pub(crate) fn has_tcx() -> Result<bool, ProgramError> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(error) if matches!(errno(&error), Some(libc::EPERM | libc::EACCES)) => Err(error),
        // EINVAL: no such type of attachment.
        Err(_) => Ok(false),
    }
}

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
    link: SchedClassifierLink,
    _clsact: Option<Clsact>,
}

impl Hook {
    /// Whether its link is one of these.
    fn is_among(&self, links: &BTreeSet<u32>) -> bool {
        let link = <&FdLink>::try_from(&self.link);
        let info = link.and_then(FdLink::info);
        info.is_ok_and(|info| links.contains(&info.id()))
    }
}

/// The programs on one interface. Dropping it detaches them, XDP first, unless they are pinned.
#[derive(Debug)]
pub struct Attachment {
    _xdp: XdpLink,
    admit: BTreeMap<u32, Hook>,
    out: Hook,
    /// Where the links are pinned.
    pins: Option<PathBuf>,
    /// How XDP runs: `native` or `generic`.
    pub xdp_mode: &'static str,
    /// Why that is not native, where native was tried first.
    pub fallback: Option<String>,
    /// The interface.
    pub index: u32,
    /// Its name when it was attached.
    pub name: String,
}

impl Attachment {
    /// Makes admission follow the VLAN devices on the interface. A packet with two tags is only
    /// IP to the kernel at the inner device's TC ingress, and a socket can only be given to IP.
    /// A device that refuses is retried on the next change, and one whose link is among the `severed`
    /// is hooked again.
    pub fn follow(&mut self, dataplane: &mut Dataplane, vlans: &[Device], severed: &BTreeSet<u32>) {
        if dataplane.local_error.is_some() {
            return;
        }
        let own = self.index;
        let is_gone = |index: &u32, hook: &mut Hook| {
            let is_there = vlans.iter().any(|vlan| vlan.index == *index);
            *index != own && (!is_there || hook.is_among(severed))
        };
        for (index, hook) in self.admit.extract_if(.., is_gone) {
            if let Some(pins) = &self.pins {
                // Without its pin it goes with the hook.
                drop(fs::remove_file(pins.join(admit_name(index))));
            }
            drop(hook);
        }
        for vlan in vlans {
            if self.admit.contains_key(&vlan.index) {
                continue;
            }
            let hooked = hook_admit(&mut dataplane.programs, vlan).and_then(|hook| {
                let Some(pins) = &self.pins else {
                    return Ok(hook);
                };
                pin_hook(hook, &pins.join(admit_name(vlan.index)), vlan)
            });
            match hooked {
                Ok(hook) => {
                    debug!(interface = vlan.name, "admission follows VLAN device");
                    self.admit.insert(vlan.index, hook);
                }
                Err(error) => warn!(%error, "connections over this VLAN cannot be admitted"),
            }
        }
    }

    /// Whether somebody else has taken one of the programs off the interface itself.
    pub fn is_severed(
        &self,
        dataplane: &mut Dataplane,
        device: &Device,
        severed: &BTreeSet<u32>,
    ) -> bool {
        let name = in_name(self.xdp_mode == GENERIC);
        // What cannot be asked for is taken to be as it was.
        let ours = find::<Xdp>(&mut dataplane.programs, name, device)
            .ok()
            .and_then(|program| Some(program.info().ok()?.id()));
        let hooks = self.admit.get(&self.index).into_iter().chain([&self.out]);
        ours.is_some_and(|ours| device.xdp_program != Some(ours))
            || hooks.into_iter().any(|hook| hook.is_among(severed))
    }

    /// Detaches, though it be pinned.
    pub fn detach(self) -> Result<(), PinError> {
        match &self.pins {
            Some(directory) => pins::unlink(directory),
            None => Ok(()),
        }
    }
}

/// Attaches to `device` and admission also to `vlans`, the VLAN devices stacked on it.
pub fn attach(
    dataplane: &mut Dataplane,
    device: &Device,
    vlans: &[Device],
    mode: XdpMode,
    pins: Option<&Pins>,
) -> Result<Attachment, AttachError> {
    if let Some(program) = device.xdp_program {
        return Err(occupied(device, program));
    }
    // By guess: should the driver refuse, the other takes its place.
    let generic = mode == XdpMode::Generic;
    let out = hook_out(&mut dataplane.programs, device, generic)?;
    let mut admit = BTreeMap::new();
    if dataplane.local_error.is_none() {
        for device in std::iter::once(device).chain(vlans) {
            admit.insert(device.index, hook_admit(&mut dataplane.programs, device)?);
        }
    }
    let (xdp, xdp_mode, fallback) = attach_xdp(&mut dataplane.programs, device, mode)?;
    let out = match xdp_mode == GENERIC {
        now if now == generic => out,
        now => hook_out(&mut dataplane.programs, device, now)?,
    };
    let attachment = Attachment {
        _xdp: xdp,
        admit,
        out,
        pins: None,
        xdp_mode,
        fallback,
        index: device.index,
        name: device.name.clone(),
    };
    match pins {
        Some(pins) => pin(attachment, pins, device),
        None => Ok(attachment),
    }
}

/// Pins all links of an attachment, in a directory that appears whole.
fn pin(attachment: Attachment, pins: &Pins, device: &Device) -> Result<Attachment, AttachError> {
    let Attachment {
        _xdp: xdp,
        admit,
        out,
        ..
    } = attachment;
    let directory = pins.links_of(device.index);
    let staged = pins.links().join(format!("new_{}", device.index));
    let make = || -> io::Result<()> {
        // Of an interface that had this index before.
        if fs::exists(&directory)? {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&staged)
    };
    make().map_err(|error| unpinned(device, &staged, &error))?;
    let pinned = || -> Result<Attachment, AttachError> {
        let out = pin_hook(out, &staged.join(OUT), device)?;
        let admit = admit
            .into_iter()
            .map(|(index, hook)| {
                let hook = pin_hook(hook, &staged.join(admit_name(index)), device)?;
                Ok((index, hook))
            })
            .collect::<Result<_, _>>()?;
        let path = staged.join(xdp_name(attachment.xdp_mode));
        let link = FdLink::try_from(xdp).map_err(|error| unpinned(device, &path, &error))?;
        let link = pin_link(link, &path, device)?;
        let xdp = XdpLink::try_from(link).map_err(|error| unpinned(device, &path, &error))?;
        fs::rename(&staged, &directory).map_err(|error| unpinned(device, &directory, &error))?;
        Ok(Attachment {
            _xdp: xdp,
            admit,
            out,
            pins: Some(directory.clone()),
            xdp_mode: attachment.xdp_mode,
            fallback: attachment.fallback,
            index: attachment.index,
            name: attachment.name,
        })
    };
    pinned().inspect_err(|_| drop(pins::unlink(&staged)))
}

fn pin_hook(hook: Hook, path: &Path, device: &Device) -> Result<Hook, AttachError> {
    let link = FdLink::try_from(hook.link).map_err(|error| unpinned(device, path, &error))?;
    let link = pin_link(link, path, device)?;
    let link =
        SchedClassifierLink::try_from(link).map_err(|error| unpinned(device, path, &error))?;
    Ok(Hook {
        link,
        _clsact: hook._clsact,
    })
}

fn pin_link(link: FdLink, path: &Path, device: &Device) -> Result<FdLink, AttachError> {
    link.pin(path)
        .map(FdLink::from)
        .map_err(|error| unpinned(device, path, &error))
}

/// What was taken over.
#[derive(Debug)]
pub struct Adopted {
    /// The programs on the interface.
    pub attachment: Attachment,
    /// Whether they were others before.
    pub swapped: bool,
}

/// Takes over the pinned links of an interface, and has them run our programs, each replaced at once.
/// `None` where nothing is pinned that still works.
pub fn adopt(
    dataplane: &mut Dataplane,
    device: &Device,
    vlans: &[Device],
    pins: &Pins,
) -> Result<Option<Adopted>, AttachError> {
    let directory = pins.links_of(device.index);
    let open = |name: &str| -> Result<Option<FdLink>, AttachError> {
        let path = directory.join(name);
        if !fs::exists(&path).map_err(|error| unpinned(device, &path, &error))? {
            return Ok(None);
        }
        PinnedLink::from_pin(&path)
            .map(|link| Some(link.into()))
            .map_err(|error| unpinned(device, &path, &error))
    };
    let mut xdp = None;
    for mode in [NATIVE, GENERIC] {
        if let Some(link) = open(xdp_name(mode))? {
            xdp = Some((link, mode));
        }
    }
    let (Some((xdp, xdp_mode)), Some(out)) = (xdp, open(OUT)?) else {
        return Ok(None);
    };
    // A link outlives its interface, and another may have its index now.
    let id = program_id(&xdp).map_err(|error| unpinned(device, &directory, &error))?;
    if device.xdp_program != Some(id) {
        return Ok(None);
    }
    let programs = &mut dataplane.programs;
    let generic = xdp_mode == GENERIC;
    let mut swapped = false;
    let out = replace_hook(programs, out_name(generic), out, device, &mut swapped)?;
    let mut admit = BTreeMap::new();
    if dataplane.local_error.is_none() {
        for device in std::iter::once(device).chain(vlans) {
            let hook = match open(&admit_name(device.index))? {
                Some(link) => replace_hook(programs, PROGRAM_ADMIT, link, device, &mut swapped)?,
                None => {
                    let hook = hook_admit(programs, device)?;
                    pin_hook(hook, &directory.join(admit_name(device.index)), device)?
                }
            };
            admit.insert(device.index, hook);
        }
    }
    let name = in_name(generic);
    let program: &mut Xdp = find(programs, name, device)?;
    let mut xdp = XdpLink::try_from(xdp).map_err(|error| unpinned(device, &directory, &error))?;
    if program.info().is_ok_and(|info| info.id() != id) {
        xdp = program
            .attach_to_link(xdp)
            .and_then(|id| program.take_link(id))
            .map_err(|error| refused(device, name, &error))?;
        swapped = true;
    }
    let attachment = Attachment {
        _xdp: xdp,
        admit,
        out,
        pins: Some(directory),
        xdp_mode,
        fallback: None,
        index: device.index,
        name: device.name.clone(),
    };
    Ok(Some(Adopted {
        attachment,
        swapped,
    }))
}

fn replace_hook(
    programs: &mut Programs,
    name: &'static str,
    link: FdLink,
    device: &Device,
    swapped: &mut bool,
) -> Result<Hook, AttachError> {
    let broken = |error: &dyn std::error::Error| kernel(device, name, one_line(error));
    let now = program_id(&link).map_err(|error| broken(&error))?;
    let program: &mut SchedClassifier = find(programs, name, device)?;
    let mut link = SchedClassifierLink::try_from(link).map_err(|error| broken(&error))?;
    if program.info().is_ok_and(|info| info.id() != now) {
        link = program
            .attach_to_link(link)
            .and_then(|id| program.take_link(id))
            .map_err(|error| refused(device, name, &error))?;
        *swapped = true;
    }
    Ok(Hook {
        link,
        _clsact: None,
    })
}

fn program_id(link: &FdLink) -> Result<u32, LinkError> {
    link.info().map(|info| info.program_id())
}

/// Names of the pins.
const OUT: &str = "out";

fn admit_name(index: u32) -> String {
    format!("admit_{index}")
}

fn xdp_name(mode: &str) -> &'static str {
    if mode == GENERIC {
        "xdp_generic"
    } else {
        "xdp_native"
    }
}

fn in_name(generic: bool) -> &'static str {
    if generic {
        PROGRAM_IN_GENERIC
    } else {
        PROGRAM_IN
    }
}

fn out_name(generic: bool) -> &'static str {
    if generic {
        PROGRAM_OUT_GENERIC
    } else {
        PROGRAM_OUT
    }
}

/// The way out, which must know whether what it sends back passes XDP once more.
fn hook_out(programs: &mut Programs, device: &Device, generic: bool) -> Result<Hook, AttachError> {
    hook(programs, out_name(generic), device, TcAttachType::Egress)
}

fn hook_admit(programs: &mut Programs, device: &Device) -> Result<Hook, AttachError> {
    hook(programs, PROGRAM_ADMIT, device, TcAttachType::Ingress)
}

/// As [`Attachment::xdp_mode`] has it.
const NATIVE: &str = "native";
/// As [`Attachment::xdp_mode`] has it.
const GENERIC: &str = "generic";

/// Why [`XdpMode::Auto`] leaves native XDP alone on a device of this driver that has it.
///
/// A veth hands what XDP sends back to the other end only if that runs an XDP program itself
/// (`veth_xdp_xmit` wants its NAPI, which GRO would do for, and `veth_xdp_flush` its program to wake it),
/// which other ends seldom do and this namespace cannot see. Without, every answer is lost in silence.
pub fn auto_declines(driver: Option<&str>) -> Option<&'static str> {
    (driver == Some("veth"))
        .then_some("the other end of a veth gets no answers of native XDP unless it runs XDP too")
}

fn attach_xdp(
    programs: &mut Programs,
    device: &Device,
    mode: XdpMode,
) -> Result<(XdpLink, &'static str, Option<String>), AttachError> {
    let mut fallback = (mode == XdpMode::Auto)
        .then(|| auto_declines(device.driver.as_deref()))
        .flatten()
        .map(|why| format!("({why})"));
    if mode != XdpMode::Generic && fallback.is_none() {
        match try_xdp(programs, device, AyaXdpMode::Driver) {
            Ok(link) => return Ok((link, NATIVE, None)),
            Err(AttachError::NativeUnsupported { mtu, reason, .. }) if mode == XdpMode::Auto => {
                fallback = Some(format!("{mtu}({reason})").trim_start().to_owned());
            }
            Err(error) => return Err(error),
        }
    }
    try_xdp(programs, device, AyaXdpMode::Skb).map(|link| (link, GENERIC, fallback))
}

fn try_xdp(
    programs: &mut Programs,
    device: &Device,
    mode: AyaXdpMode,
) -> Result<XdpLink, AttachError> {
    let name = in_name(mode == AyaXdpMode::Skb);
    let xdp: &mut Xdp = find(programs, name, device)?;
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
    programs: &mut Programs,
    name: &'static str,
    device: &Device,
    direction: TcAttachType,
) -> Result<Hook, AttachError> {
    let (clsact, options) = if can_pin() {
        (None, TcAttachOptions::TcxOrder(LinkOrder::default()))
    } else {
        let clsact = Clsact::ensure(&device.name, device.index)
            .map_err(|error| refused(device, name, &ProgramError::TcError(error)))?;
        (clsact, TcAttachOptions::Netlink(NlOptions::default()))
    };
    let classifier: &mut SchedClassifier = find(programs, name, device)?;
    let link = classifier
        .attach_with_options(&device.name, direction, options)
        .and_then(|id| classifier.take_link(id))
        .map_err(|error| refused(device, name, &error))?;
    Ok(Hook {
        link,
        _clsact: clsact,
    })
}

fn find<'a, P>(
    programs: &'a mut Programs,
    name: &'static str,
    device: &Device,
) -> Result<&'a mut P, AttachError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    programs
        .get(name)
        .map_err(|error| kernel(device, name, error.to_string()))
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

fn unpinned(device: &Device, path: &Path, error: &dyn std::error::Error) -> AttachError {
    AttachError::Pin {
        name: device.name.clone(),
        path: path.to_owned(),
        reason: one_line(error),
    }
}

fn kernel(device: &Device, program: &'static str, reason: String) -> AttachError {
    AttachError::Kernel {
        name: device.name.clone(),
        program,
        reason,
    }
}

/// Name of a loaded program.
pub(crate) fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs()
        .filter_map(Result::ok)
        .find(|info| info.id() == id)?;
    info.name_as_str().map(str::to_owned)
}

/// Whether an XDP program of this name is synguard's.
pub(crate) fn is_ours(program: &str) -> bool {
    [PROGRAM_IN, PROGRAM_IN_GENERIC].contains(&program)
}

fn occupied(device: &Device, id: u32) -> AttachError {
    let program_name = program_name(id).unwrap_or_else(|| "?".to_owned());
    let name = device.name.clone();
    if is_ours(&program_name) {
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
