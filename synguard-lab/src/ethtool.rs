//! Offload features of a device, switched by name as `ethtool -K` does (`SIOCETHTOOL`).

use std::{
    ffi::c_char,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context as _, Result, bail};
use nix::libc;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETH_SS_FEATURES: u32 = 4;
const ETH_GSTRING_LEN: usize = 32;
/// `ethtool_sset_info`, `ethtool_gstrings` and `ethtool_sfeatures` are a few words and then an
/// array; words are also how the kernel aligns them.
const HEADER_WORDS: usize = 3;

/// Switches features of a device in the calling thread's namespace. A name the device does not
/// know is an error; one the device cannot change is left as it is.
pub fn set_features(device: &str, features: &[(&str, bool)]) -> Result<()> {
    let socket = socket()?;
    let names =
        names(&socket, device).with_context(|| format!("cannot list the features of {device}"))?;
    let blocks = names.len().div_ceil(32);
    // struct ethtool_sfeatures: cmd, size, then pairs of (valid, requested).
    let mut request = vec![0u32; 2 + 2 * blocks];
    request[0] = ETHTOOL_SFEATURES;
    request[1] = blocks as u32;
    for (name, on) in features {
        let Some(bit) = names.iter().position(|known| known == name) else {
            bail!("the kernel knows no feature {name:?}");
        };
        let (block, mask) = (2 + 2 * (bit / 32), 1 << (bit % 32));
        request[block] |= mask;
        if *on {
            request[block + 1] |= mask;
        }
    }
    ioctl(&socket, device, &mut request)
        .with_context(|| format!("cannot set {features:?} of {device}"))
}

fn names(socket: &OwnedFd, device: &str) -> Result<Vec<String>> {
    // struct ethtool_sset_info: cmd, reserved, sset_mask (u64), then one count per set asked for.
    let mut info = vec![ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0, 0];
    ioctl(socket, device, &mut info)?;
    let count = info[4] as usize;

    let mut strings = vec![0u32; HEADER_WORDS + count * ETH_GSTRING_LEN / 4];
    strings[0] = ETHTOOL_GSTRINGS;
    strings[1] = ETH_SS_FEATURES;
    strings[2] = count as u32;
    ioctl(socket, device, &mut strings)?;
    let bytes: Vec<u8> = strings[HEADER_WORDS..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    Ok(bytes
        .chunks(ETH_GSTRING_LEN)
        .map(|name| {
            String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default())
                .into_owned()
        })
        .collect())
}

fn socket() -> Result<OwnedFd> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)
        .context("cannot open a socket")?;
    Ok(socket.into())
}

fn ioctl(socket: &OwnedFd, device: &str, request: &mut [u32]) -> io::Result<()> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= ifreq.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the device's name is too long",
        ));
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as c_char;
    }
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: `request` holds the structure its first word names, with room for what is returned,
    // and outlives the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut ifreq) } {
        // SFEATURES returns a bit mask of what it could not do.
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
