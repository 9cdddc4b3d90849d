//! Half-open connections: who enters the count, and what takes one out of it.
//!
//! An entry is made when a SYN passes to the server and completed by the server's SYN-ACK, seen on
//! egress, which cannot be forged from outside. It leaves on the ACK of *that* SYN-ACK, on a RST
//! that the server would believe too, or with age. So a sender of forged ACKs, who cannot know the
//! server's initial sequence number, does not lower the count.

use crate::{abi::HalfOpen, wire::tcp};

/// Bytes after the client's SYN that count as inside the server's window. The kernel takes a
/// segment for a half-open connection within the window it offered (`tcp_check_req`), which in a
/// SYN-ACK is never above 65535.
const WINDOW: u32 = 65535;

/// Whether a connection that became half-open, as the `count`-th at the same time, turns its service
/// guarded.
#[inline(always)]
pub const fn crosses(count: u64, high: u32) -> bool {
    count >= high as u64
}

/// What a segment from the client means to its half-open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stays,
    /// It acknowledges the server's SYN-ACK.
    Done,
    /// The client gave it up.
    Reset,
    /// The server's SYN-ACK was never seen (it left by another way): only the socket table can
    /// tell.
    AskSocket,
}

/// Judges a segment other than a SYN.
#[inline(always)]
pub fn step(entry: &HalfOpen, flags: u16, sequence: u32, acknowledgment: u32) -> Step {
    let in_window = sequence.wrapping_sub(entry.client_isn.wrapping_add(1)) < WINDOW;
    if !in_window {
        return Step::Stays;
    }
    if flags & tcp::RST != 0 {
        return Step::Reset;
    }
    if flags & tcp::ACK == 0 {
        return Step::Stays;
    }
    if entry.confirmed == 0 {
        return Step::AskSocket;
    }
    if acknowledgment == entry.server_isn.wrapping_add(1) {
        Step::Done
    } else {
        Step::Stays
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(client_isn: u32, server_isn: u32) -> HalfOpen {
        HalfOpen {
            since: 0,
            client_isn,
            server_isn,
            service: 1,
            confirmed: 1,
            link_len: 0,
            link: [0; 5],
        }
    }

    #[test]
    fn what_takes_an_entry_out() {
        let e = entry(u32::MAX, 500);
        assert_eq!(step(&e, tcp::ACK, 0, 501), Step::Done);
        assert_eq!(step(&e, tcp::ACK | tcp::FIN, 1460, 501), Step::Done);
        assert_eq!(step(&e, tcp::RST, 0, 0), Step::Reset);
        assert_eq!(step(&e, tcp::RST, 70_000, 0), Step::Stays);
        assert_eq!(step(&e, tcp::FIN, 0, 501), Step::Stays);
        assert_eq!(
            step(&HalfOpen { confirmed: 0, ..e }, tcp::ACK, 0, 501),
            Step::AskSocket
        );
    }

    proptest! {
        #[test]
        fn a_forged_ack_does_not(client_isn: u32, server_isn: u32, seq: u32, ack: u32, fin: bool) {
            prop_assume!(ack != server_isn.wrapping_add(1));
            let flags = if fin { tcp::ACK | tcp::FIN } else { tcp::ACK };
            prop_assert_eq!(step(&entry(client_isn, server_isn), flags, seq, ack), Step::Stays);
        }
    }
}
