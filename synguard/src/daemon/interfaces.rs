//! Attaching to interfaces, detaching, and following those that vanish or change their name.

use tracing::{error, info};

use super::{errands::Port, guard::Guard};
use crate::dataplane::{
    Attachment, attach,
    error::{AttachError, NearNames, one_line},
};

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
            .and_then(|()| {
                attach::attach(&mut self.dataplane, &device, &vlans, self.config.xdp_mode)
            });
        match attached {
            Ok(attachment) => {
                info!(
                    interface = name,
                    "guarding {name} ({} XDP, driver {}, MTU {})",
                    attachment.xdp_mode,
                    device.driver.as_deref().unwrap_or("unknown"),
                    device.mtu
                );
                if let Some(interface) = self.interfaces.last_mut() {
                    interface.attachment = Some(attachment);
                }
                self.settle();
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

    /// Where frames may be sent and received.
    pub(super) fn ports(&self) -> Vec<Port> {
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

    /// Whether an interface of this name is guarded.
    pub fn guards(&self, name: &str) -> bool {
        self.interfaces
            .iter()
            .any(|interface| interface.name == name)
    }

    /// Detaches from an interface and leaves it as it was found.
    pub fn detach(&mut self, name: &str) -> Result<(), String> {
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
        drop(self.interfaces.remove(at));
        info!(interface = name, "no longer guarding {name}");
        self.replan().map_err(|error| format!("{error:#}"))
    }

    /// Detaches from everything.
    pub fn stop(&mut self) {
        for interface in self.interfaces.drain(..).rev() {
            let name = interface.name.clone();
            drop(interface);
            info!(interface = name, "no longer guarding {name}");
        }
    }

    pub(super) fn drop_vanished(&mut self) {
        let world = &self.world;
        for gone in self
            .interfaces
            .extract_if(.., |each| world.by_index(each.index).is_none())
        {
            error!(
                interface = gone.name,
                "interface {} is gone: no longer guarding it", gone.name
            );
        }
        for interface in &mut self.interfaces {
            if let Some(link) = world.by_index(interface.index)
                && link.device.name != interface.name
            {
                info!(
                    "interface {} is called {} now",
                    interface.name, link.device.name
                );
                interface.name.clone_from(&link.device.name);
            }
        }
    }
}
