//! Ethernet II with up to two VLAN tags (IEEE 802.1Q, 802.1ad).

use crate::packet::{Packet, View, ViewMut};

/// Length of the header without tags, bytes.
pub const HEADER: usize = 14;
/// Length of a VLAN tag, bytes.
pub const TAG: usize = 4;
/// Most tags that are followed.
pub const MAX_TAGS: usize = 2;
/// Where the payload starts at the latest.
pub const MAX_HEADER: usize = HEADER + MAX_TAGS * TAG;
/// Shortest frame on the wire, bytes, without its check sequence.
pub const MIN_FRAME: usize = 60;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a customer VLAN tag.
pub const VLAN_8021Q: u16 = 0x8100;
/// EtherType of a service VLAN tag.
pub const VLAN_8021AD: u16 = 0x88a8;

/// Positions of the fields.
pub mod field {
    /// Destination, six bytes.
    pub const DESTINATION: usize = 0;
    /// Source, six bytes.
    pub const SOURCE: usize = 6;
    /// EtherType, or that of the first tag.
    pub const TYPE: usize = 12;
}

/// An Ethernet header with its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Destination address.
    pub destination: [u8; 6],
    /// Source address.
    pub source: [u8; 6],
    /// Tags, outermost first: EtherType and tag control information.
    pub tags: [(u16, u16); MAX_TAGS],
    /// How many of `tags` there are.
    pub tag_count: usize,
    /// EtherType of the payload.
    pub ethertype: u16,
}

/// Whether an EtherType announces a VLAN tag.
#[inline(always)]
pub const fn is_tag(ethertype: u16) -> bool {
    ethertype == VLAN_8021Q || ethertype == VLAN_8021AD
}

/// EtherType of the payload and where it starts, past up to [`MAX_TAGS`] tags; `None` where the
/// frame is cut short. A third tag is left as the EtherType.
#[inline(always)]
pub fn payload<P: Packet + ?Sized>(packet: &P) -> Option<(u16, usize)> {
    let ethertype = packet.view(0, HEADER)?.u16(field::TYPE);
    if !is_tag(ethertype) {
        return Some((ethertype, HEADER));
    }
    let ethertype = packet.view(HEADER, TAG)?.u16(2);
    if !is_tag(ethertype) {
        return Some((ethertype, HEADER + TAG));
    }
    let ethertype = packet.view(HEADER + TAG, TAG)?.u16(2);
    Some((ethertype, HEADER + 2 * TAG))
}

/// Length of the header of a packet whose payload starts at `payload`, without the EtherType of that:
/// 12, 16 or 20 bytes.
#[inline(always)]
pub const fn before_type(payload: usize) -> usize {
    payload - 2
}

/// The word of this index among the first `len` bytes of a frame, as it lies in memory; zero beyond them.
#[inline(always)]
pub fn word<P: Packet>(packet: &P, index: usize, len: usize) -> Option<u32> {
    let at = index * size_of::<u32>();
    if at < len {
        Some(packet.view(at, size_of::<u32>())?.u32(0).to_be())
    } else {
        Some(0)
    }
}

impl Header {
    /// Reads the header and its tags; the second value is their length.
    pub fn read<P: Packet + ?Sized>(packet: &P) -> Option<(Self, usize)> {
        let view = packet.view(0, HEADER)?;
        let mut header = Self {
            destination: core::array::from_fn(|i| view.u8(field::DESTINATION + i)),
            source: core::array::from_fn(|i| view.u8(field::SOURCE + i)),
            tags: [(0, 0); MAX_TAGS],
            tag_count: 0,
            ethertype: view.u16(field::TYPE),
        };
        let mut at = HEADER;
        while is_tag(header.ethertype) && header.tag_count < MAX_TAGS {
            let tag = packet.view(at, TAG)?;
            header.tags[header.tag_count] = (header.ethertype, tag.u16(0));
            header.tag_count += 1;
            header.ethertype = tag.u16(2);
            at += TAG;
        }
        Some((header, at))
    }

    /// Length with the tags, bytes.
    pub const fn len(&self) -> usize {
        HEADER + self.tag_count * TAG
    }

    /// Never: there are always the fixed fields.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes the header; the view must have [`Header::len`] bytes.
    pub fn write(&self, mut view: impl ViewMut) {
        for i in 0..6 {
            view.set_u8(field::DESTINATION + i, self.destination[i]);
            view.set_u8(field::SOURCE + i, self.source[i]);
        }
        let mut at = field::TYPE;
        for (ethertype, control) in &self.tags[..self.tag_count] {
            view.set_u16(at, *ethertype);
            view.set_u16(at + 2, *control);
            at += TAG;
        }
        view.set_u16(at, self.ethertype);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_cut_anywhere_have_no_payload() {
        let mut frame = [0u8; 22];
        frame[12..22].copy_from_slice(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8, 0x86, 0xdd]);
        for len in 0..22 {
            assert_eq!(payload(&frame[..len]), None, "{len}");
        }
        assert_eq!(payload(&frame[..]), Some((IPV6, 22)));
    }

    #[test]
    fn a_third_tag_is_not_followed() {
        let mut frame = [0u8; 26];
        frame[12..26].copy_from_slice(&[0x81, 0, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8, 0]);
        assert_eq!(payload(&frame[..]), Some((VLAN_8021Q, 22)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            destination: [u8; 6], source: [u8; 6], count in 0..=MAX_TAGS,
            tags: [(bool, u16); MAX_TAGS], ethertype in any::<u16>().prop_filter("tag", |t| !is_tag(*t)),
        ) {
            let mut header = Header {
                destination, source, tags: [(0, 0); MAX_TAGS], tag_count: count, ethertype,
            };
            for (tag, (service, control)) in header.tags[..count].iter_mut().zip(tags) {
                *tag = (if service { VLAN_8021AD } else { VLAN_8021Q }, control);
            }
            let mut frame = [0u8; 22];
            header.write(&mut frame[..]);
            prop_assert_eq!(Header::read(&frame[..]), Some((header, header.len())));
            prop_assert_eq!(payload(&frame[..]), Some((ethertype, header.len())));
        }
    }
}
