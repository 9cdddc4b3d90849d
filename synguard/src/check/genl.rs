//! What a device can and does, asked of the kernel's generic netlink families `netdev` (what its
//! driver offers XDP) and `ethtool` (which offloads are on, how many queues there are). Nobody needs
//! rights for that.

use std::{collections::BTreeSet, io};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// linux/genetlink.h: the family that knows the others.
const CONTROL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_RX_SG: u64 = 1 << 5;

/// linux/ethtool_netlink.h.
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_CHANNELS_GET: u8 = 17;
/// The same in every message.
const ETHTOOL_A_HEADER: u16 = 1;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const ETHTOOL_A_CHANNELS_RX_MAX: u16 = 2;
const ETHTOOL_A_CHANNELS_COMBINED_MAX: u16 = 5;
const ETHTOOL_A_CHANNELS_RX_COUNT: u16 = 6;
const ETHTOOL_A_CHANNELS_TX_COUNT: u16 = 7;
const ETHTOOL_A_CHANNELS_COMBINED_COUNT: u16 = 9;

/// What a driver offers XDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Programs run in it, and can pass, drop and send back.
    pub native: bool,
    /// Also on frames of several buffers.
    pub frags: bool,
}

/// How many queues a device has, and may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// Receive queues.
    pub rx: u32,
    /// Receive queues there could be.
    pub rx_max: u32,
    /// Queues to send by.
    pub tx: u32,
    /// Whether a queue is for both.
    pub combined: bool,
}

/// A question or an answer.
#[derive(Debug)]
struct Message {
    family: u16,
    command: u8,
    attributes: Vec<u8>,
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        // Asked only by resolvers that are not used here.
        ""
    }

    fn family_id(&self) -> u16 {
        self.family
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        buffer[..self.attributes.len()].copy_from_slice(&self.attributes);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self {
            family: 0,
            command: header.cmd,
            attributes: bytes.to_vec(),
        })
    }
}

/// What the driver of a device offers XDP; `None` where the kernel does not tell (before 6.3).
pub fn xdp_features(index: u32) -> Option<XdpFeatures> {
    let request = bytes(&[number(NETDEV_A_DEV_IFINDEX, index)]);
    let answer = ask(family("netdev").ok()?, NETDEV_CMD_DEV_GET, request).ok()?;
    let value = attribute(&answer, NETDEV_A_DEV_XDP_FEATURES)?;
    let bits = u64::from_ne_bytes(value.get(..8)?.try_into().ok()?);
    Some(XdpFeatures {
        native: bits & NETDEV_XDP_ACT_BASIC != 0,
        frags: bits & NETDEV_XDP_ACT_RX_SG != 0,
    })
}

/// The offloads of a device that are on, by the names the kernel has for them.
pub fn offloads(index: u32) -> Option<BTreeSet<String>> {
    let answer = ask_ethtool(ETHTOOL_MSG_FEATURES_GET, index)?;
    let active = attribute(&answer, ETHTOOL_A_FEATURES_ACTIVE)?;
    let bits = attribute(&active, ETHTOOL_A_BITSET_BITS).unwrap_or_default();
    let names = NlasIterator::new(&bits)
        .filter_map(Result::ok)
        .filter_map(|bit| {
            let name = attribute(bit.value(), ETHTOOL_A_BITSET_BIT_NAME)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(String::from_utf8_lossy(name).into_owned())
        });
    Some(names.collect())
}

/// The queues of a device, where its driver tells.
pub fn channels(index: u32) -> Option<Channels> {
    let answer = ask_ethtool(ETHTOOL_MSG_CHANNELS_GET, index)?;
    let count = |kind| -> u32 {
        let value = attribute(&answer, kind).and_then(|value| value.get(..4)?.try_into().ok());
        value.map_or(0, u32::from_ne_bytes)
    };
    let combined = count(ETHTOOL_A_CHANNELS_COMBINED_COUNT);
    let channels = Channels {
        rx: combined + count(ETHTOOL_A_CHANNELS_RX_COUNT),
        rx_max: count(ETHTOOL_A_CHANNELS_COMBINED_MAX).max(count(ETHTOOL_A_CHANNELS_RX_MAX)),
        tx: combined + count(ETHTOOL_A_CHANNELS_TX_COUNT),
        combined: combined > 0,
    };
    (channels.rx > 0).then_some(channels)
}

fn ask_ethtool(command: u8, index: u32) -> Option<Vec<u8>> {
    let header = bytes(&[number(ETHTOOL_A_HEADER_DEV_INDEX, index)]);
    let request = bytes(&[DefaultNla::new(ETHTOOL_A_HEADER | NLA_F_NESTED, header)]);
    ask(family("ethtool").ok()?, command, request).ok()
}

/// The number of a family in this kernel.
fn family(name: &str) -> io::Result<u16> {
    let mut name = name.as_bytes().to_vec();
    name.push(0);
    let request = bytes(&[DefaultNla::new(CTRL_ATTR_FAMILY_NAME, name)]);
    let answer = ask(CONTROL, CTRL_CMD_GETFAMILY, request)?;
    attribute(&answer, CTRL_ATTR_FAMILY_ID)
        .and_then(|id| Some(u16::from_ne_bytes(id.get(..2)?.try_into().ok()?)))
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Sends a question and returns the attributes of the answer.
fn ask(family: u16, command: u8, attributes: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let question = GenlMessage::from_payload(Message {
        family,
        command,
        attributes,
    });
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    socket.send(&request, 0)?;

    let mut answer = None;
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = received.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<GenlMessage<Message>>::deserialize(rest)
                .map_err(io::Error::other)?;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => answer = Some(message.payload.attributes),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                // The end, asked for by NLM_F_ACK.
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                    return answer.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
                }
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }
}

fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn bytes(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// The value of the first attribute of a kind.
fn attribute(bytes: &[u8], kind: u16) -> Option<Vec<u8>> {
    NlasIterator::new(bytes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == kind)
        .map(|attribute| attribute.value().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    // The loopback device of whatever namespace the tests run in: these questions change nothing.
    const LOOPBACK: u32 = 1;

    #[test]
    fn the_kernel_answers_about_loopback() {
        let offloads = offloads(LOOPBACK).unwrap();
        assert!(offloads.contains("loopback"), "{offloads:?}");
        assert!(!offloads.contains("rx-lro"), "{offloads:?}");
        // A kernel before 6.3 does not know.
        if let Some(features) = xdp_features(LOOPBACK) {
            assert!(!features.native, "{features:?}");
        }
        assert_eq!(channels(LOOPBACK), None);
    }

    #[test]
    fn nobody_knows_what_is_not_there() {
        assert!(family("no such family").is_err());
        assert_eq!(offloads(u32::MAX / 2), None);
        assert_eq!(xdp_features(u32::MAX / 2), None);
    }
}
