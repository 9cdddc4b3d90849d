//! Prefixes as people write them.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A prefix, or an address as one of full length. It has no host bits, and IPv4 is never mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// It is something else.
    #[error(
        "\"{0}\" is neither an address nor a prefix; give one such as 192.0.2.1, 192.0.2.0/24 or \
         2001:db8::/32"
    )]
    Unreadable(String),
    /// It is one, and wrong: the whole line.
    #[error("{0}")]
    Wrong(String),
}

impl Prefix {
    /// The network.
    pub const fn net(self) -> IpNet {
        self.0
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let unreadable = || {
            let shown = text.escape_debug().take(64).collect();
            PrefixError::Unreadable(shown)
        };
        let (address, length) = match text.split_once('/') {
            None => (text, None),
            Some((address, length)) => (
                address,
                Some(length.parse::<u8>().map_err(|_| unreadable())?),
            ),
        };
        let address: IpAddr = address.parse().map_err(|_| unreadable())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let length = length.unwrap_or(longest);
        let Ok(prefix) = IpNet::new(address, length) else {
            return Err(PrefixError::Wrong(format!(
                "{text} is longer than an address; give a prefix length of at most {longest}"
            )));
        };
        if let IpNet::V6(v6) = prefix
            && length >= 96
            && let Some(v4) = v6.addr().to_ipv4_mapped()
        {
            let right = if length == 128 {
                v4.to_string()
            } else {
                format!("{v4}/{}", length - 96)
            };
            return Err(PrefixError::Wrong(format!(
                "{text} is an IPv4 address mapped to IPv6; give {right}"
            )));
        }
        if prefix.network() != address {
            return Err(PrefixError::Wrong(format!(
                "{text} has host bits set; give {} for the prefix, or {address} for the address",
                prefix.trunc()
            )));
        }
        Ok(Self(prefix))
    }
}

/// An address without its full length.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_read_strictly_and_written_short() {
        for (text, shown) in [
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("224.0.0.0/4", "224.0.0.0/4"),
            ("2001:DB8::/32", "2001:db8::/32"),
        ] {
            let prefix: Prefix = text.parse().unwrap();
            assert_eq!(prefix.to_string(), shown);
            let json = serde_json::to_string(&prefix).unwrap();
            assert_eq!(serde_json::from_str::<Prefix>(&json).unwrap(), prefix);
        }
        for (text, part) in [
            ("", "neither an address nor a prefix"),
            ("192.0.2.0/", "neither an address nor a prefix"),
            ("192.0.2", "neither an address nor a prefix"),
            (
                "192.0.2.0/33",
                "longer than an address; give a prefix length of at most 32",
            ),
            (
                "192.0.2.1/24",
                "host bits set; give 192.0.2.0/24 for the prefix, or 192.0.2.1",
            ),
            ("::ffff:192.0.2.0/120", "give 192.0.2.0/24"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
