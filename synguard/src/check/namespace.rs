//! Finds a network namespace by the number that this one has for it, to look at the other end of a
//! wire.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
    thread,
};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    nsid::{NsidAttribute, NsidMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::facts::{Seen, Unseen};

/// Where `ip netns` keeps them.
const NAMED: &str = "/run/netns";

/// Runs `look` in the namespace that has this number here, on a thread of its own.
pub fn within<T: Send>(number: i32, look: impl FnOnce() -> Seen<T> + Send) -> Seen<T> {
    let namespace = find(number)?;
    thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| unseen(&error.into()))?;
            look()
        });
        match thread.join() {
            Ok(seen) => seen,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn find(number: i32) -> Seen<File> {
    let mut tried = BTreeSet::new();
    let mut denied = false;
    for path in candidates() {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                denied |= error.kind() == io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        // Most processes share a namespace.
        let Ok(metadata) = file.metadata() else {
            continue;
        };
        if tried.insert(metadata.ino()) && number_of(&file).is_ok_and(|n| n == Some(number)) {
            return Ok(file);
        }
    }
    Err(if denied {
        Unseen::NeedsRoot
    } else {
        Unseen::Other("its network namespace belongs to no process and has no name".into())
    })
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    let named = entries(NAMED).map(|entry| entry.path());
    let of_processes = entries("/proc")
        .filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        })
        .map(|entry| entry.path().join("ns/net"));
    named.chain(of_processes)
}

/// The number of a namespace here, if it has one.
fn number_of(namespace: &File) -> io::Result<Option<i32>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut question = NsidMessage::default();
    question
        .attributes
        .push(NsidAttribute::Fd(namespace.as_raw_fd() as u32));
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let question = RouteNetlinkMessage::GetNsId(question);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
    message.finalize();
    let mut request = vec![0; message.buffer_len()];
    message.serialize(&mut request);
    socket.send(&request, 0)?;
    let (received, _) = socket.recv_from_full()?;
    let answer =
        NetlinkMessage::<RouteNetlinkMessage>::deserialize(&received).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(message)) => Ok(message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                NsidAttribute::Id(number) => Some(*number),
                _ => None,
            })),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Ok(None),
    }
}

fn unseen(error: &io::Error) -> Unseen {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Unseen::NeedsRoot,
        _ => Unseen::Other(error.to_string()),
    }
}
