//! Reads packet captures: pcap in both byte orders and resolutions, and pcapng, one packet at a time.

use std::{
    fs::File,
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
};

use pcap_parser::{
    Block, LegacyPcapReader, Linktype, PcapBlockOwned, PcapError, PcapNGReader,
    traits::{PcapNGPacketBlock as _, PcapReaderIterator},
};

/// What is read at first: enough for the first block of a pcapng file, however talkative.
const HEAD: usize = 1 << 16;
/// Largest buffer: what is longer than this is no packet.
const BUFFER_LIMIT: usize = 16 << 20;
/// The higher bits of a link type say whether there is a checksum at the end of frames.
const LINK_TYPE: i32 = 0xffff;
const SECOND: u128 = 1_000_000_000;

/// Why there are no packets, or no more of them.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file system.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Nothing in it.
    #[error("{} is empty: write a capture with `tcpdump -i IFACE -w FILE`", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Something else.
    #[error("{} is {what}, not a packet capture: {remedy}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        what: &'static str,
        /// What to do.
        remedy: String,
    },
    /// Frames of a kind that we have no Ethernet frames for.
    #[error("{} was captured on a link of type {link}: capture on an Ethernet device, or on `any`", path.display())]
    Link {
        /// The file.
        path: PathBuf,
        /// The type, as on <https://www.tcpdump.org/linktypes.html>.
        link: Linktype,
    },
    /// The end is missing, as where tcpdump was killed or is still writing.
    #[error("{} ends in the middle {}", path.display(), Within(*packets))]
    Cut {
        /// The file.
        path: PathBuf,
        /// Whole packets before the end.
        packets: u64,
    },
    /// It contradicts itself.
    #[error("{} is damaged after packet {packets}: what follows cannot be read", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Packets before that.
        packets: u64,
    },
}

/// Where a file is cut.
struct Within(u64);

impl std::fmt::Display for Within {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => f.write_str("of its header or first packet: nothing in it can be explained"),
            1 => f.write_str("of packet 2: only the first is explained"),
            whole => write!(
                f,
                "of packet {}: the {whole} before it are explained",
                whole + 1
            ),
        }
    }
}

/// A packet as it was captured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    /// Its position in the file, from 1.
    pub number: u64,
    /// When, in nanoseconds since the epoch, where the file tells.
    pub time: Option<u64>,
    /// How long it was.
    pub length: u32,
    /// Link type of the device.
    pub link: i32,
    /// What was kept of it.
    pub bytes: Vec<u8>,
}

impl Captured {
    /// Whether its end is missing.
    pub fn is_cut(&self) -> bool {
        self.bytes.len() < self.length as usize
    }
}

/// A device of a pcapng section.
struct Device {
    link: i32,
    /// Longest packet that was kept; 0 is no limit.
    snap: u32,
    ticks_per_second: u128,
    /// Seconds to be added.
    offset: i64,
}

/// A capture that is being read.
pub struct Capture {
    path: PathBuf,
    reader: Box<dyn PcapReaderIterator + Send>,
    buffer: usize,
    packets: u64,
    /// Of a pcap file: link type, and nanoseconds in a unit of its time stamps.
    legacy: (i32, u64),
    devices: Vec<Device>,
}

impl Capture {
    /// Opens the file at `path`; `-` is standard input.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        if path == Path::new("-") {
            return Self::new(PathBuf::from("(standard input)"), io::stdin());
        }
        let file = File::open(path).map_err(|source| CaptureError::Io {
            path: path.to_owned(),
            source,
        })?;
        Self::new(path.to_owned(), file)
    }

    /// Reads from `source`, which messages call `path`.
    pub fn new(path: PathBuf, source: impl Read + Send + 'static) -> Result<Self, CaptureError> {
        let mut source = source;
        let mut head = Vec::new();
        // The readers want the first block whole: of a pipe this waits for so much, or for its end.
        if let Err(source) = source.by_ref().take(HEAD as u64).read_to_end(&mut head) {
            return Err(CaptureError::Io { path, source });
        }
        let kind = match kind(&head) {
            Ok(kind) => kind,
            Err(None) => return Err(CaptureError::Empty { path }),
            Err(Some((what, remedy))) => {
                let remedy = remedy.replace("FILE", &path.display().to_string());
                return Err(CaptureError::Foreign { path, what, remedy });
            }
        };
        let source = Cursor::new(head).chain(source);
        let reader: Result<Box<dyn PcapReaderIterator + Send>, _> = match kind {
            Kind::Pcap => LegacyPcapReader::new(HEAD, source).map(|reader| Box::new(reader) as _),
            Kind::PcapNg => PcapNGReader::new(HEAD, source).map(|reader| Box::new(reader) as _),
        };
        match reader {
            Ok(reader) => Ok(Self {
                path,
                reader,
                buffer: HEAD,
                packets: 0,
                legacy: (0, 0),
                devices: Vec::new(),
            }),
            Err(PcapError::Incomplete(_)) => Err(CaptureError::Cut { path, packets: 0 }),
            Err(_) => Err(CaptureError::Damaged { path, packets: 0 }),
        }
    }

    /// Bytes of the file that were used.
    pub fn consumed(&self) -> u64 {
        self.reader.consumed() as u64
    }

    /// Reads the next packet into `packet`; false at the end.
    pub fn next(&mut self, packet: &mut Captured) -> Result<bool, CaptureError> {
        loop {
            let (offset, block) = match self.reader.next() {
                Ok(next) => next,
                Err(PcapError::Eof) => return Ok(false),
                Err(PcapError::Incomplete(_)) => {
                    self.refill()?;
                    continue;
                }
                Err(PcapError::BufferTooSmall) => {
                    self.grow()?;
                    continue;
                }
                Err(PcapError::UnexpectedEof) => {
                    return Err(CaptureError::Cut {
                        path: self.path.clone(),
                        packets: self.packets,
                    });
                }
                Err(_) => return Err(self.damaged()),
            };
            let taken = match block {
                PcapBlockOwned::LegacyHeader(header) => {
                    let unit = if header.is_nanosecond_precision() {
                        1
                    } else {
                        1000
                    };
                    let link = header.network.0 & LINK_TYPE;
                    self.legacy = (link, unit);
                    if super::link::is_known(link) {
                        Ok(false)
                    } else {
                        Err(CaptureError::Link {
                            path: self.path.clone(),
                            link: Linktype(link),
                        })
                    }
                }
                PcapBlockOwned::Legacy(block) => {
                    let (link, unit) = self.legacy;
                    let fraction = u64::from(block.ts_usec).saturating_mul(unit);
                    let seconds = u64::from(block.ts_sec) * SECOND as u64;
                    packet.time = Some(seconds.saturating_add(fraction));
                    packet.take(link, block.origlen, block.data);
                    Ok(true)
                }
                PcapBlockOwned::NG(block) => match section(&mut self.devices, &block, packet) {
                    Some(taken) => Ok(taken),
                    None => Err(CaptureError::Damaged {
                        path: self.path.clone(),
                        packets: self.packets,
                    }),
                },
            };
            self.reader.consume(offset);
            if taken? {
                self.packets += 1;
                packet.number = self.packets;
                return Ok(true);
            }
        }
    }

    fn refill(&mut self) -> Result<(), CaptureError> {
        let before = self.reader.data().len();
        if self.reader.refill().is_err() {
            return Err(CaptureError::Io {
                path: self.path.clone(),
                source: io::ErrorKind::Other.into(),
            });
        }
        if self.reader.data().len() == before && !self.reader.reader_exhausted() {
            self.grow()?;
        }
        Ok(())
    }

    fn grow(&mut self) -> Result<(), CaptureError> {
        self.buffer *= 2;
        if self.buffer > BUFFER_LIMIT {
            return Err(self.damaged());
        }
        self.reader.grow(self.buffer);
        self.refill()
    }

    fn damaged(&self) -> CaptureError {
        CaptureError::Damaged {
            path: self.path.clone(),
            packets: self.packets,
        }
    }
}

impl Captured {
    fn take(&mut self, link: i32, length: u32, bytes: &[u8]) {
        self.link = link;
        // A few programs write less than they kept.
        self.length = length.max(bytes.len() as u32);
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
    }
}

/// Takes a block of a pcapng file; says whether it was a packet, and `None` where it makes no sense.
fn section(devices: &mut Vec<Device>, block: &Block<'_>, packet: &mut Captured) -> Option<bool> {
    match block {
        Block::SectionHeader(_) => {
            devices.clear();
            Some(false)
        }
        Block::InterfaceDescription(block) => {
            devices.push(Device {
                link: block.linktype.0 & LINK_TYPE,
                snap: block.snaplen,
                ticks_per_second: ticks_per_second(block.if_tsresol)?,
                offset: block.if_tsoffset,
            });
            Some(false)
        }
        Block::EnhancedPacket(block) => {
            let device = devices.get(block.if_id as usize)?;
            let ticks = u128::from(block.ts_high) << 32 | u128::from(block.ts_low);
            let since = ticks.checked_mul(SECOND)? / device.ticks_per_second;
            let offset = i128::from(device.offset) * SECOND as i128;
            packet.time = u64::try_from(i128::try_from(since).ok()?.checked_add(offset)?).ok();
            packet.take(device.link, block.origlen, block.packet_data());
            Some(true)
        }
        Block::SimplePacket(block) => {
            let device = devices.first()?;
            let kept = match device.snap {
                0 => block.origlen,
                snap => block.origlen.min(snap),
            };
            packet.time = None;
            let data = block.packet_data();
            let data = data.get(..kept as usize).unwrap_or(data);
            packet.take(device.link, block.origlen, data);
            Some(true)
        }
        _ => Some(false),
    }
}

/// What `if_tsresol` means: a negative power of 10, or of 2 with the highest bit set.
fn ticks_per_second(resolution: u8) -> Option<u128> {
    let power = u32::from(resolution & 0x7f);
    if resolution & 0x80 == 0 {
        10u128.checked_pow(power).filter(|_| power <= 19)
    } else {
        1u128.checked_shl(power).filter(|_| power <= 63)
    }
}

enum Kind {
    Pcap,
    PcapNg,
}

/// What a file that begins with `head` is; else what it seems to be and what to do, if there is
/// anything.
fn kind(head: &[u8]) -> Result<Kind, Option<(&'static str, &'static str)>> {
    const ANOTHER: &str = "write one with `tcpdump -i IFACE -w FILE`";
    let start = match head.first_chunk::<4>() {
        Some(start) => *start,
        None if head.is_empty() => return Err(None),
        None => return Err(Some(("too short", ANOTHER))),
    };
    match (start, u32::from_le_bytes(start)) {
        (_, 0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34 | 0xd4c3_b2a1 | 0x4d3c_b2a1) => Ok(Kind::Pcap),
        (_, 0x0a0d_0d0a) => Ok(Kind::PcapNg),
        ([0x1f, 0x8b, ..], _) => Err(Some(("compressed", "try `zcat FILE | synguard explain -`"))),
        ([0x28, 0xb5, 0x2f, 0xfd], _) => Err(Some((
            "compressed",
            "try `zstdcat FILE | synguard explain -`",
        ))),
        ([0xfd, b'7', b'z', b'X'], _) => Err(Some((
            "compressed",
            "try `xzcat FILE | synguard explain -`",
        ))),
        _ => Err(Some(("something else", ANOTHER))),
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
