//! Single frames through the loaded programs, by `BPF_PROG_TEST_RUN`: the catalogue of
//! `synguard_lab::fixtures`, and mutations of its frames. The socket table is a real one, in a
//! namespace of its own, and whatever the programs decide is held against the same decisions on
//! the host: verdict, bytes and counts.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod flows;
mod fuzz;
mod kernel;
mod mutate;
mod sockets;

use synguard_common::verdict::{Action, Reason};
use synguard_lab::{
    fixtures::{self, HostSide, Lane, Setup, Side as _, Way},
    frame::{Extension, Frame, flags},
    skip_unless_root,
};

use crate::kernel::KernelSide;

#[test]
fn every_fixture_in_the_kernel() {
    if !skip_unless_root("every fixture in the kernel") {
        return;
    }
    let mut side = KernelSide::new().unwrap();
    let count = fixtures::run_all(|fixture| fixture.run(&mut side, |_, _| ())).unwrap();
    println!("{count} fixtures");
}

/// Of a frame in several buffers, the programs see the first directly: on jumbo frames a chain of
/// extension headers puts the TCP header out of its reach. The kernel does find it there.
#[test]
fn a_tcp_header_behind_the_first_buffer_is_no_way_round() {
    if !skip_unless_root("a TCP header behind the first buffer") {
        return;
    }
    let lane = Lane::new(Lane::KINDS[3], 19_999);
    let mut side = KernelSide::new().unwrap();
    side.set_up(Setup::guarded().tables(&lane)).unwrap();
    let long = |flags| {
        let mut frame = lane.syn().flags(flags);
        for _ in 0..2 {
            frame = frame.extension(Extension::destination(255));
        }
        frame.build()
    };
    for flags in [flags::SYN, flags::ACK] {
        let frame = long(flags);
        assert!(frame.len() > 4096, "all of it in the first buffer");
        let outcome = side.kernel(&frame).unwrap();
        assert_eq!(outcome.verdict.reason, Reason::OutOfReach);
        assert_eq!(outcome.action, Action::Drop);
    }
    // Where nothing is guarded it is the kernel's business, as everything else is.
    side.set_up(Setup::calm().tables(&lane)).unwrap();
    let outcome = side.kernel(&long(flags::SYN)).unwrap();
    assert_eq!(outcome.verdict.reason, Reason::Calm);
}

/// What carries no mark is passed without a look, and so is what still carries a tag: the hook on
/// the VLAN device sees it once more.
#[test]
fn admission_looks_at_what_is_marked() {
    if !skip_unless_root("admission looks at what is marked") {
        return;
    }
    let mut side = KernelSide::new().unwrap();
    let ack = |lane: &Lane| lane.forged(flags::ACK);
    let plain = Lane::new(Lane::KINDS[0], 19_998);
    side.set_up(Setup::guarded().tables(&plain)).unwrap();
    assert_eq!(side.admit_raw(&ack(&plain).build(), false).unwrap(), None);
    assert!(
        side.admit_raw(&ack(&plain).build(), true)
            .unwrap()
            .is_some()
    );
    let tagged = Lane::new(Lane::KINDS[1], 19_997);
    assert_eq!(side.admit_raw(&ack(&tagged).build(), true).unwrap(), None);
}

/// The kernel takes off any number of tags with VLAN identifier 0 (`__netif_receive_skb_core`) and
/// delivers what is under them to the device's own address: the reason why a third tag must not
/// pass. Where this fails, the kernel has changed and the fixture "third tag" may.
#[test]
fn the_kernel_strips_any_number_of_priority_tags() {
    if !skip_unless_root("the kernel strips any number of priority tags") {
        return;
    }
    use std::time::Duration;
    let side = KernelSide::new().unwrap();
    let (edge, wire) = side.wire();
    let lane = Lane::new(Lane::KINDS[0], 19_996);
    let syn = |tags: usize| -> Frame {
        let frame = edge.frame(lane.acquaintance(), lane.server());
        (0..tags).fold(frame, |frame, _| frame.vlan(0x8100, 0))
    };
    for tags in 0..=3 {
        let answer = wire
            .exchange(&syn(tags).seq(tags as u32).build(), Duration::from_secs(1))
            .unwrap();
        assert!(
            answer.is_some_and(|answer| answer.has_flags(flags::SYN | flags::ACK)),
            "{tags} tags"
        );
    }
}

/// The catalogue's frames, in the order in which they arrive and leave on the host.
fn corpus() -> Vec<(Way, Vec<u8>)> {
    let mut frames = Vec::new();
    for fixture in fixtures::all() {
        // Whether it goes well is another test's business.
        let _ = fixture.run(&mut HostSide::default(), |way, frame| {
            frames.push((way, frame.to_vec()));
        });
    }
    frames
}
