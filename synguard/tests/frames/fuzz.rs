//! The catalogue's frames, changed at random: host and kernel must agree on every one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use synguard_common::{
    abi::{
        ADMISSION_PROXY, ADMISSION_RESET, AddressEntry, FLOW_KNOWN, FLOW_PENDING, FLOW_SPLICED,
        FlowEntry, LINK_HEADER, MODE_ALWAYS, MODE_OBSERVE, SERVICE_NONE, ServiceConfig, Tuple,
    },
    profile::Profile,
    tables::Verdict,
    verdict::{Action, Reason},
};
use synguard_lab::{
    fixtures::{
        self, KEYS, Lane, OTHER, Present, PresentKind, Promise, SUBJECT, Side as _, TICK, Way,
        check_answer, check_promise, check_question,
    },
    frame::{check_icmp, describe},
    host::{HostTables, SERVICE, tuple},
    skip_unless_root,
};

use crate::{
    corpus,
    kernel::KernelSide,
    mutate::{Random, become_acquaintance, layout, mutate, reply, successor},
};

/// Frames in all, about ten seconds' worth.
const FRAMES: u32 = 300_000;
/// Fewer where they take longer than this.
const LIMIT: Duration = Duration::from_secs(20);
/// After so many, half-open tables and states begin anew.
const ROUND: u32 = 2_500;
/// Longest frame: what fits the first buffer of a test run, with the answer's room to grow.
pub const LONGEST: usize = 3_000;
/// Another run is another seed away.
const SEED_VARIABLE: &str = "SYNGUARD_FUZZ_SEED";
const SEED: u64 = 0x5379_6e47_7561_7264;

/// Flows that a round begins with, at most.
const FLOWS: usize = 2_000;
const ALWAYS: ServiceConfig = ServiceConfig {
    mode: MODE_ALWAYS,
    ..SERVICE
};
const PROXIED: ServiceConfig = ServiceConfig {
    admission: ADMISSION_PROXY,
    learns: 1,
    ..SERVICE
};
/// What the subject is, round by round. Proxied most often, since that has most to go wrong.
const ROUNDS: [ServiceConfig; 6] = [
    ALWAYS,
    ServiceConfig {
        mode: MODE_ALWAYS,
        ..PROXIED
    },
    ServiceConfig {
        admission: ADMISSION_RESET,
        ..ALWAYS
    },
    // Calm at first.
    ServiceConfig {
        high: 300,
        ..PROXIED
    },
    ServiceConfig {
        mode: MODE_ALWAYS,
        learns: 0,
        mss: 1200,
        ..PROXIED
    },
    ServiceConfig {
        mode: MODE_OBSERVE,
        high: 3,
        ..PROXIED
    },
];

const MTU: u16 = 1500;
/// Port of a calm service, on which something listens.
pub const CALM_PORT: u16 = 8080;
/// Port of an observed one, likewise.
pub const OBSERVED_PORT: u16 = 8443;
pub const EXCEPTED_PORT: u16 = 22;
/// Client port of the one connection that really exists.
pub const ACQUAINTED_PORT: u16 = 19_990;
const OBSERVED: u16 = 900;

/// Everything at once: [`WEB`] and the rest guarded, one port calm, one observed, one excepted.
fn world() -> HostTables {
    let mut tables = HostTables::default()
        .half_open_room(fixtures::HALF_OPEN_ROOM as usize)
        .service(
            SUBJECT,
            ServiceConfig {
                mode: MODE_ALWAYS,
                ..SERVICE
            },
        )
        .service(
            OTHER,
            ServiceConfig {
                high: 40,
                ..SERVICE
            },
        )
        .service(
            OBSERVED,
            ServiceConfig {
                mode: MODE_OBSERVE,
                high: 3,
                ..SERVICE
            },
        )
        .port(1, CALM_PORT, OTHER)
        .port(1, OBSERVED_PORT, OBSERVED)
        .port(1, EXCEPTED_PORT, SERVICE_NONE);
    tables.set_tick(TICK);
    tables.set_runtime(true, false, 0);
    tables.set_verified_ticks(40);
    for epoch in KEYS {
        tables = tables.key(fixtures::key_of(epoch));
    }
    for kind in [Lane::KINDS[0], Lane::KINDS[3]] {
        let lane = Lane::new(kind, 0);
        let entry = AddressEntry {
            ports_id: 1,
            service: SUBJECT,
            mtu: MTU,
        };
        tables = tables
            .address(lane.server_ip(), entry)
            .listener(lane.server())
            .listener(lane.server_at(CALM_PORT))
            .listener(lane.server_at(OBSERVED_PORT));
    }
    tables
}

#[test]
fn host_and_kernel_agree_on_any_frame() {
    if !skip_unless_root("host and kernel agree on any frame") {
        return;
    }
    let seed = match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => SEED,
    };
    let mut side = KernelSide::new().unwrap();
    side.set_up(world()).unwrap();
    // One connection that frames may hit upon.
    for kind in [Lane::KINDS[0], Lane::KINDS[3]] {
        let lane = Lane::new(kind, ACQUAINTED_PORT);
        side.open(Present {
            kind: PresentKind::Connection,
            client: lane.acquaintance(),
            server: lane.server(),
        })
        .unwrap();
    }
    let corpus: Vec<_> = corpus()
        .into_iter()
        .filter(|(_, frame)| frame.len() <= LONGEST)
        .collect();
    let mut random = Random(seed);
    let mut reasons = BTreeMap::new();
    let mut last = corpus[0].1.clone();
    let mut next = 0;
    let mut config = SERVICE;
    let mut done = 0;
    let begin = Instant::now();
    for number in 0..FRAMES {
        if begin.elapsed() > LIMIT {
            assert!(number > FRAMES / 5, "only {number} frames in {LIMIT:?}");
            break;
        }
        done = number + 1;
        if number.is_multiple_of(ROUND) {
            side.finish().unwrap();
            let round = number / ROUND;
            config = ROUNDS[round as usize % ROUNDS.len()];
            let profile = Profile(random.of(&[0, 1 << 32 | 1400 << 16 | 0x907, 1 << 32 | 0x602]));
            let flows = flows(&corpus, &mut random);
            side.begin(config, profile, &flows).unwrap();
            if round.is_multiple_of(2) {
                side.guard(SERVICE_NONE).unwrap();
            }
            // The clock must not run away from the keys.
            side.set_wall(fixtures::wall(0, Duration::from_secs(1)))
                .unwrap();
        }
        if random.chance(1) {
            let ticks = random.below(20) as u32;
            side.set_tick(TICK + ticks).unwrap();
        }
        // Often what comes next in its fixture: connections are made of frames in sequence.
        next = if random.chance(60) {
            (next + 1) % corpus.len()
        } else {
            random.below(corpus.len())
        };
        let (way, mut frame) = corpus[next].clone();
        if random.chance(3) {
            become_acquaintance(&mut frame);
        }
        if way == Way::In && random.chance(15) {
            frame = successor(&last, &mut random);
        }
        for _ in 0..random.of(&[0, 0, 0, 1, 1, 2, 3, 4]) {
            mutate(&mut frame, &mut random, &corpus);
        }
        frame.resize(frame.len().clamp(14, LONGEST), 0);
        let told = || format!("seed {seed}, frame {number}, {way:?}: {frame:02x?}");
        let mut verdicts = Vec::new();
        match way {
            Way::In => {
                let verdict = run(&mut side, &frame, &config).with_context(told).unwrap();
                verdicts.push(Some(verdict));
                if random.chance(10) {
                    verdicts.extend(
                        others(&mut side, &frame, &mut random)
                            .with_context(told)
                            .unwrap(),
                    );
                }
            }
            Way::Out if is_long_enough(&frame) => {
                verdicts.push(leave(&mut side, &frame).with_context(told).unwrap());
            }
            Way::Out => {}
        }
        for verdict in verdicts.into_iter().flatten() {
            *reasons.entry(verdict.reason.label()).or_insert(0u32) += 1;
        }
        side.settle();
        last = frame;
    }
    side.finish().unwrap();
    println!("{done} frames in {:?}: {reasons:?}", begin.elapsed());
    // A fuzzer that reaches nothing finds nothing.
    for reason in [
        Reason::Challenged,
        Reason::CookieValid,
        Reason::AckInvalid,
        Reason::BadTcp,
        Reason::BadExtension,
        Reason::Fragment,
        Reason::Established,
        Reason::SynTracked,
        Reason::SynCrossed,
        Reason::SynAckSeen,
        Reason::ServerReset,
        Reason::Admitted,
        Reason::AdmitInvalid,
        Reason::HalfOpenReset,
        Reason::JustAdmitted,
        Reason::NoListener,
        Reason::Unprotected,
        Reason::NotTcp,
        Reason::SpliceStarted,
        Reason::SpliceRetried,
        Reason::SplicePending,
        Reason::SpliceCompleted,
        Reason::SpliceRefused,
        Reason::SpliceShort,
        Reason::SpliceChallenged,
        Reason::Translated,
        Reason::TranslatedOut,
        Reason::FlowKnown,
        Reason::FlowLearned,
        Reason::BadChecksum,
        Reason::ProfileProbe,
        Reason::IcmpTranslated,
        Reason::IcmpTranslatedOut,
        Reason::SourceVerified,
        Reason::SynVerified,
        Reason::Unchecked,
    ] {
        assert!(
            reasons.contains_key(reason.label()),
            "{} is never reached",
            reason.label()
        );
    }
}

/// The kernel makes no skb of less than an IP header, which stands alone once tags are off.
fn is_long_enough(frame: &[u8]) -> bool {
    frame.len() >= layout(frame).0 + 40
}

/// The TC programs on a frame and on an answer to it; both sides are compared there.
fn others(
    side: &mut KernelSide,
    frame: &[u8],
    random: &mut Random,
) -> Result<[Option<Verdict>; 2]> {
    if !is_long_enough(frame) {
        return Ok([None, None]);
    }
    let admitted = side.admit(frame)?;
    Ok([admitted, leave(side, &reply(frame, random))?])
}

/// One frame on both sides, and the answer read.
fn run(side: &mut KernelSide, frame: &[u8], config: &ServiceConfig) -> Result<Verdict> {
    let outcome = side.both(frame)?;
    let verdict = outcome.verdict;
    if outcome.action == Action::Answer {
        if verdict.service != SUBJECT {
            check_answer(frame, &outcome.frame, &SERVICE, MTU)
        } else if config.admission == ADMISSION_RESET {
            check_question(frame, &outcome.frame, config, MTU)
        } else {
            let v6 = frame
                .get(layout(frame).0)
                .is_some_and(|byte| byte >> 4 == 6);
            let profile = side.state(SUBJECT)?.profile;
            let promise = Promise::of(config, profile, if v6 { 60 } else { 40 });
            check_promise(frame, &outcome.frame, &promise, MTU)
        }
        .context("the answer")?;
    } else {
        stays_sound(frame, &outcome.frame)?;
    }
    Ok(verdict)
}

/// One frame that leaves, on both sides.
fn leave(side: &mut KernelSide, frame: &[u8]) -> Result<Option<Verdict>> {
    let departure = side.egress(frame)?;
    // What is dropped may be dropped half-way.
    if departure
        .verdict
        .is_none_or(|verdict| verdict.reason.action() != Action::Drop)
    {
        stays_sound(frame, &departure.frame)?;
    }
    for copy in &departure.copies {
        stays_sound(frame, copy).context("the copy")?;
    }
    Ok(departure.verdict)
}

/// Whether a frame is a whole packet with right checksums, by an independent reader.
fn is_sound(frame: &[u8]) -> bool {
    match describe(frame) {
        Ok(read) => read.ip_checksum_ok && read.tcp_checksum_ok,
        Err(_) => check_icmp(frame).is_ok(),
    }
}

/// What was sound before is sound after.
fn stays_sound(before: &[u8], after: &[u8]) -> Result<()> {
    ensure!(
        before == after || !is_sound(before) || is_sound(after),
        "became unsound: {after:02x?}"
    );
    Ok(())
}

/// Flows of clients that the corpus has frames of, in any state.
fn flows(corpus: &[(Way, Vec<u8>)], random: &mut Random) -> Vec<(Tuple, FlowEntry)> {
    let mut flows = Vec::new();
    for _ in 0..FLOWS {
        let (way, frame) = &corpus[random.below(corpus.len())];
        let Ok(read) = describe(frame) else {
            continue;
        };
        let (tuple, ack, next) = match way {
            Way::In => (tuple(read.source, read.destination), read.seq, read.ack),
            Way::Out => (tuple(read.destination, read.source), read.ack, read.seq),
        };
        let mut link = [0; LINK_HEADER];
        let link_len = random.of(&[12, 16, 20]);
        link[..link_len].copy_from_slice(&frame[..link_len]);
        flows.push((
            tuple,
            FlowEntry {
                delta: random.next() as u32,
                ts_delta: random.next() as u32,
                cookie: next.wrapping_sub(random.of(&[0, 1, 1, 2])),
                client_isn: ack.wrapping_sub(random.of(&[0, 1, 1, 2])),
                server_next: next.wrapping_add(random.of(&[0, 0, 1, 1 << 24, 1 << 25])),
                server_ack: ack.wrapping_add(random.of(&[0, 0, 1, 1 << 16, 1 << 25])),
                client_tsval: random.next() as u32,
                seen_at: TICK,
                sent_at: TICK,
                window: random.next() as u16,
                mss: random.next() as u16,
                service: SUBJECT,
                state: random.of(&[FLOW_PENDING, FLOW_SPLICED, FLOW_SPLICED, FLOW_KNOWN]),
                closing: random.of(&[0, 0, 0, 1, 2, 3, 4]),
                options: random.next() as u8 & 0xf,
                client_scale: random.below(15) as u8,
                promised_scale: random.below(15) as u8,
                server_scale: random.below(15) as u8,
                tries: random.of(&[0, 0, 1]),
                link_len: link_len as u8,
                pad: 0,
                link,
            },
        ));
    }
    flows
}
