//! TCP options, written and read for tests.

use anyhow::{Result, bail};

/// One TCP option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TcpOption {
    /// End of the list (kind 0).
    End,
    /// Padding (kind 1).
    Nop,
    /// Maximum segment size (kind 2).
    Mss(u16),
    /// Window scale (kind 3).
    WindowScale(u8),
    /// Selective acknowledgements permitted (kind 4).
    SackPermitted,
    /// Blocks acknowledged selectively (kind 5).
    Sack(Vec<(u32, u32)>),
    /// Timestamps (kind 8): value and echo.
    Timestamps(u32, u32),
    /// Fast open (kind 34): the cookie, empty in a request for one.
    FastOpen(Vec<u8>),
    /// Any other kind, with its data.
    Other(u8, Vec<u8>),
}

impl TcpOption {
    /// Appends the option as it lies in a header.
    pub fn emit(&self, to: &mut Vec<u8>) {
        let (kind, data): (u8, Vec<u8>) = match self {
            Self::End => return to.push(0),
            Self::Nop => return to.push(1),
            Self::Mss(size) => (2, size.to_be_bytes().to_vec()),
            Self::WindowScale(shift) => (3, vec![*shift]),
            Self::SackPermitted => (4, Vec::new()),
            Self::Sack(blocks) => (
                5,
                blocks
                    .iter()
                    .flat_map(|(left, right)| [left.to_be_bytes(), right.to_be_bytes()].concat())
                    .collect(),
            ),
            Self::Timestamps(value, echo) => {
                (8, [value.to_be_bytes(), echo.to_be_bytes()].concat())
            }
            Self::FastOpen(cookie) => (34, cookie.clone()),
            Self::Other(kind, data) => (*kind, data.clone()),
        };
        to.push(kind);
        to.push(data.len() as u8 + 2);
        to.extend(data);
    }

    /// Reads the options of a header. What stands behind the end of the list is not looked at; a
    /// length that cannot be is an error.
    pub fn parse_all(mut from: &[u8]) -> Result<Vec<Self>> {
        let mut options = Vec::new();
        while let [kind, rest @ ..] = from {
            match kind {
                0 => {
                    options.push(Self::End);
                    break;
                }
                1 => {
                    options.push(Self::Nop);
                    from = rest;
                    continue;
                }
                _ => {}
            }
            let length = usize::from(rest.first().copied().unwrap_or(0));
            if length < 2 || length > from.len() {
                bail!(
                    "TCP option {kind} says it is {length} bytes long, where {} are left",
                    from.len()
                );
            }
            let data = &from[2..length];
            let word = |at: usize| {
                u32::from_be_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]])
            };
            options.push(match (kind, data.len()) {
                (2, 2) => Self::Mss(u16::from_be_bytes([data[0], data[1]])),
                (3, 1) => Self::WindowScale(data[0]),
                (4, 0) => Self::SackPermitted,
                (5, 8 | 16 | 24 | 32) => Self::Sack(
                    (0..data.len())
                        .step_by(8)
                        .map(|at| (word(at), word(at + 4)))
                        .collect(),
                ),
                (8, 8) => Self::Timestamps(word(0), word(4)),
                (34, _) => Self::FastOpen(data.to_vec()),
                _ => Self::Other(*kind, data.to_vec()),
            });
            from = &from[length..];
        }
        Ok(options)
    }

    /// What a Linux client offers: MSS, SACK, timestamps, window scale 7, in Linux's order.
    pub fn linux_syn(mss: u16, timestamp: u32) -> Vec<Self> {
        vec![
            Self::Mss(mss),
            Self::SackPermitted,
            Self::Timestamps(timestamp, 0),
            Self::Nop,
            Self::WindowScale(7),
        ]
    }

    /// What a Windows client offers: no timestamps.
    pub fn windows_syn(mss: u16) -> Vec<Self> {
        vec![
            Self::Mss(mss),
            Self::Nop,
            Self::WindowScale(8),
            Self::Nop,
            Self::Nop,
            Self::SackPermitted,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_order_byte_for_byte() {
        let mut bytes = Vec::new();
        TcpOption::linux_syn(1460, 0x01020304)
            .iter()
            .for_each(|option| option.emit(&mut bytes));
        assert_eq!(
            bytes,
            [
                2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7
            ]
        );
        assert_eq!(
            TcpOption::parse_all(&bytes).unwrap(),
            TcpOption::linux_syn(1460, 0x01020304)
        );
    }

    #[test]
    fn lengths_that_cannot_be() {
        for bytes in [&[2u8, 5, 1, 1][..], &[2, 0], &[2, 1], &[3], &[8, 10, 0]] {
            assert!(TcpOption::parse_all(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn every_kind_comes_back() {
        let options = vec![
            TcpOption::Sack(vec![(1, 2), (3, u32::MAX)]),
            TcpOption::FastOpen(vec![1, 2, 3, 4]),
            TcpOption::FastOpen(vec![]),
            TcpOption::Other(30, vec![9]),
            // Of a known kind, but not of its length.
            TcpOption::Other(2, vec![1, 2, 3]),
            TcpOption::End,
        ];
        let mut bytes = Vec::new();
        options.iter().for_each(|option| option.emit(&mut bytes));
        assert_eq!(TcpOption::parse_all(&bytes).unwrap(), options);
    }
}
