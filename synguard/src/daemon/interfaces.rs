//! Attaching to interfaces, detaching, and following those that vanish or change their name.

use std::collections::BTreeSet;

use tracing::{error, info, warn};

use super::{guard::Guard, inject::Port};
use crate::{
    dataplane::{
        Attachment, Device, attach,
        error::{AttachError, NearNames, one_line},
        pins,
    },
    journal::{Journal, What},
    model::XdpMode,
};

/// How an interface came to be guarded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// By attaching to it.
    Attached,
    /// An earlier daemon had.
    Adopted,
    /// One of another build had.
    Swapped,
}

/// An interface that is guarded, or about to be.
pub(super) struct Interface {
    pub index: u32,
    pub name: String,
    pub attachment: Option<Attachment>,
}

impl Interface {
    /// Whether XDP runs in generic mode on it.
    pub(super) fn is_generic(&self) -> bool {
        let attachment = self.attachment.as_ref();
        attachment.is_some_and(|attachment| attachment.xdp_mode == "generic")
    }
}

/// Detaches from an interface and leaves it as it was found.
fn take_off(interface: Interface, journal: &Journal) {
    let name = interface.name;
    match interface.attachment.map(Attachment::detach) {
        Some(Err(error)) => error!("{error}"),
        _ => journal.note(What::Detached { interface: name }),
    }
}

/// Whether XDP is attached as it is asked for.
fn suits(attachment: &Attachment, mode: XdpMode) -> bool {
    match mode {
        XdpMode::Auto => true,
        XdpMode::Native => attachment.xdp_mode == "native",
        XdpMode::Generic => attachment.xdp_mode == "generic",
    }
}

impl Guard {
    /// Attaches to an interface. The tables know its addresses before the programs run there.
    pub fn attach(&mut self, name: &str) -> Result<(), AttachError> {
        let Some(link) = self.world.by_name(name).cloned() else {
            let hint = NearNames::new(name, self.world.names());
            return Err(AttachError::UnknownInterface {
                name: name.to_owned(),
                hint,
            });
        };
        let device = link.device;
        let vlans = self.world.vlans_on(device.index);
        self.interfaces.push(Interface {
            index: device.index,
            name: device.name.clone(),
            attachment: None,
        });
        let attached = self
            .replan()
            .map_err(|error| AttachError::Kernel {
                name: name.to_owned(),
                program: "the tables",
                reason: format!("{error:#}"),
            })
            .and_then(|()| self.put_on(device.clone(), &vlans));
        match attached {
            Ok((attachment, how)) => {
                let interface = name.to_owned();
                let xdp_mode = attachment.xdp_mode.to_owned();
                if let Some(reason) = &attachment.fallback {
                    self.journal.note(What::FellBackToGeneric {
                        interface: interface.clone(),
                        driver: device.driver.clone(),
                        reason: reason.clone(),
                    });
                }
                self.journal.note(match how {
                    How::Attached => What::Attached {
                        interface,
                        xdp_mode,
                        driver: device.driver.clone(),
                        mtu: device.mtu,
                    },
                    How::Adopted => What::ProgramAdopted {
                        interface,
                        xdp_mode,
                    },
                    How::Swapped => What::ProgramSwapped {
                        interface,
                        xdp_mode,
                    },
                });
                if let Some(interface) = self.interfaces.last_mut() {
                    interface.attachment = Some(attachment);
                }
                self.missing.retain(|missing| missing != name);
                if how == How::Attached {
                    self.settle();
                }
                if let Err(error) = self.write_runtime() {
                    error!(error = one_line(&error), "cannot write map RUNTIME");
                }
                Ok(())
            }
            Err(error) => {
                self.interfaces.pop();
                if let Err(again) = self.replan() {
                    error!("the tables keep addresses of {name}: {again:#}");
                }
                Err(error)
            }
        }
    }

    /// Takes over what is attached, or attaches; says which.
    fn put_on(
        &mut self,
        mut device: Device,
        vlans: &[Device],
    ) -> Result<(Attachment, How), AttachError> {
        if let Some(pins) = &self.pins {
            let directory = pins.links_of(device.index);
            match attach::adopt(&mut self.dataplane, &device, vlans, pins) {
                Ok(Some(adopted)) if suits(&adopted.attachment, self.config.xdp_mode) => {
                    let how = if adopted.swapped {
                        How::Swapped
                    } else {
                        How::Adopted
                    };
                    return Ok((adopted.attachment, how));
                }
                Ok(Some(_)) => {
                    info!("XDP on {} is to be attached another way", device.name);
                    device.xdp_program = None;
                }
                Ok(None) => {}
                Err(error) => {
                    warn!(
                        "what is attached to {} is attached anew: {error}",
                        device.name
                    );
                    device.xdp_program = None;
                }
            }
            if let Err(error) = pins::unlink(&directory) {
                warn!("{error}");
            }
        }
        let mode = self.config.xdp_mode;
        let attachment = attach::attach(
            &mut self.dataplane,
            &device,
            vlans,
            mode,
            self.pins.as_ref(),
        )?;
        Ok((attachment, How::Attached))
    }

    /// Where frames may be sent and received.
    pub(super) fn open_ports(&self) -> Vec<Port> {
        let attached = self
            .interfaces
            .iter()
            .filter(|interface| interface.attachment.is_some());
        attached
            .filter_map(|interface| {
                Some(Port {
                    index: interface.index,
                    mac: self.world.by_index(interface.index)?.mac.clone(),
                    generic: interface.is_generic(),
                })
            })
            .collect()
    }

    /// Names of the interfaces that are guarded.
    pub fn interface_names(&self) -> Vec<String> {
        self.interfaces
            .iter()
            .map(|interface| interface.name.clone())
            .collect()
    }

    /// Whether an interface of this name is guarded.
    pub fn guards(&self, name: &str) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.name == name)
    }

    /// Detaches from an interface and leaves it as it was found.
    pub fn detach(&mut self, name: &str) -> Result<(), String> {
        if self.missing.iter().any(|missing| missing == name) {
            self.missing.retain(|missing| missing != name);
            return Ok(());
        }
        let Some(at) = self
            .interfaces
            .iter()
            .position(|interface| interface.name == name)
        else {
            let names = self
                .interfaces
                .iter()
                .map(|interface| interface.name.clone())
                .collect();
            return Err(format!(
                "interface {name} is not guarded{}",
                NearNames::new(name, names)
            ));
        };
        take_off(self.interfaces.remove(at), &self.journal);
        self.replan().map_err(|error| format!("{error:#}"))
    }

    /// Detaches from everything. The tables go with the last of us, as nothing is attached by them.
    pub fn take_off(&mut self) {
        for interface in self.interfaces.drain(..).rev() {
            take_off(interface, &self.journal);
        }
        self.missing.clear();
    }

    /// Ends, and leaves what is pinned to whoever comes next.
    pub fn leave(&mut self) {
        let Some(pins) = &self.pins else {
            self.end_attacks();
            return self.take_off();
        };
        for interface in self.interfaces.drain(..) {
            if !pins.hold(interface.index) {
                warn!(
                    "{} cannot stay guarded: somebody has removed its pins from {}",
                    interface.name,
                    pins.root().display()
                );
                take_off(interface, &self.journal);
                continue;
            }
            self.journal.note(What::LeftGuarded {
                interface: interface.name,
            });
        }
    }

    /// Goes on guarding interfaces that an earlier daemon guarded, besides those asked for. What it
    /// has left and nobody needs any more goes.
    pub fn guard_on(&mut self) {
        let Some(pins) = &self.pins else {
            return;
        };
        for index in pins.interfaces() {
            if self.interfaces.iter().any(|each| each.index == index) {
                continue;
            }
            let link = self.world.by_index(index);
            match link.map(|link| link.device.name.clone()) {
                Some(name) => {
                    info!(
                        "{name} was guarded before: `synguard detach {name}` takes the guard off"
                    );
                    if let Err(error) = self.attach(&name) {
                        error!("{error}");
                    }
                }
                None => {
                    let directory = self.pins.as_ref().map(|pins| pins.links_of(index));
                    if let Some(Err(error)) = directory.as_deref().map(pins::unlink) {
                        warn!("{error}");
                    }
                }
            }
        }
    }

    /// Removes the programs of earlier binaries, where all interfaces run ours.
    pub fn forget_programs(&self) {
        let attached = |each: &Interface| each.attachment.is_some();
        if let Some(pins) = &self.pins
            && self.interfaces.iter().all(attached)
            && let Err(error) = pins.keep_our_programs()
        {
            warn!("{error}");
        }
    }

    /// Attaches anew where somebody else has taken a program off; `severed` are the links that are
    /// attached to nothing.
    pub(super) fn attach_severed(&mut self, severed: &BTreeSet<u32>) {
        let (world, dataplane) = (&self.world, &mut self.dataplane);
        let is_severed = |each: &mut Interface| {
            let link = world.by_index(each.index);
            let both = each.attachment.as_ref().zip(link);
            both.is_some_and(|(attachment, link)| {
                attachment.is_severed(dataplane, &link.device, severed)
            })
        };
        let lost: Vec<Interface> = self.interfaces.extract_if(.., is_severed).collect();
        for interface in lost {
            let name = interface.name;
            self.journal.note(What::ProgramSevered {
                interface: name.clone(),
            });
            // What is left of it goes too: the programs are only put on in their order.
            if let Some(Err(error)) = interface.attachment.map(Attachment::detach) {
                warn!("{error}");
            }
            // Where XDP was left to us it is gone by now; if it is another's, the kernel will say so.
            self.world.forget_xdp(interface.index);
            if let Err(error) = self.attach(&name) {
                error!("{error}");
                self.missing.push(name);
            }
        }
    }

    /// Guards interfaces again that were gone.
    pub(super) fn attach_returned(&mut self) {
        for name in std::mem::take(&mut self.missing) {
            if self.guards(&name) {
                continue;
            }
            if self.world.by_name(&name).is_none() {
                self.missing.push(name);
                continue;
            }
            self.journal.note(What::InterfaceReturned {
                interface: name.clone(),
            });
            if let Err(error) = self.attach(&name) {
                // It may not be ready yet: the next look tries again.
                error!("{error}");
                self.missing.push(name);
            }
        }
    }

    pub(super) fn drop_vanished(&mut self) {
        let world = &self.world;
        for gone in self
            .interfaces
            .extract_if(.., |each| world.by_index(each.index).is_none())
        {
            if let Some(attachment) = gone.attachment
                && let Err(error) = attachment.detach()
            {
                warn!("{error}");
            }
            self.missing.push(gone.name.clone());
            self.journal.note(What::InterfaceGone {
                interface: gone.name,
            });
        }
        for interface in &mut self.interfaces {
            if let Some(link) = world.by_index(interface.index)
                && link.device.name != interface.name
            {
                let new_name = link.device.name.clone();
                self.journal.note(What::InterfaceRenamed {
                    interface: new_name.clone(),
                    old_name: std::mem::replace(&mut interface.name, new_name),
                });
            }
        }
    }
}
