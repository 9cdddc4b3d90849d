//! What a connection does, all of it decided by a seed and its number.

use fastrand::Rng;
use synguard_lab::topology::{Ecn, Stack};

/// Largest segment and receive buffer of each listener; none for the kernel's choice.
pub const LISTENERS: [(u16, Option<u32>, Option<usize>); 4] = [
    (6000, None, None),
    (6001, Some(500), None),
    (6002, None, Some(4096)),
    (6003, Some(1200), Some(4 << 20)),
];

/// The client, and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

impl Role {
    pub const BOTH: [Self; 2] = [Self::Client, Self::Server];

    pub fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// When an end begins to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    AtOnce,
    /// When it has received all that the other end sends.
    AfterAll,
    /// When it has seen the other end's FIN.
    AfterFin,
}

/// What one end does.
#[derive(Clone, Debug)]
pub struct Part {
    pub send_buffer: Option<usize>,
    /// The following are the client's: a server's are its listener's, because what is set of a
    /// connection that carries data already makes another difference each time.
    pub receive_buffer: Option<usize>,
    /// `TCP_MAXSEG`.
    pub mss: Option<u32>,
    /// `TCP_WINDOW_CLAMP`.
    pub clamp: Option<usize>,
    pub nodelay: bool,
    /// How many bytes it sends.
    pub bytes: u64,
    pub begins: Begins,
    /// Most that it writes and reads at once.
    pub largest_write: usize,
    pub largest_read: usize,
    /// Every how many writes it pauses for up to two milliseconds.
    pub pauses: Option<u32>,
    /// Of the sizes and pauses.
    pub seed: u64,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Each end says FIN after its last byte.
    Orderly,
    /// This end resets (`SO_LINGER` of zero) after as many bytes of the other's.
    Reset { by: Role, after: u64 },
    /// The same by closing while there is something left to read.
    Unread { by: Role, after: u64 },
}

impl Ending {
    /// Who breaks it off, and after how many received bytes.
    pub fn broken_off(self) -> Option<(Role, u64)> {
        match self {
            Self::Orderly => None,
            Self::Reset { by, after } | Self::Unread { by, after } => Some((by, after)),
        }
    }
}

/// What a connection does.
#[derive(Clone, Debug)]
pub struct Script {
    pub number: u64,
    pub v6: bool,
    /// Which of [`LISTENERS`].
    pub listener: usize,
    pub parts: [Part; 2],
    pub ending: Ending,
}

/// A generator that depends on all of these.
fn generator(seed: u64, domain: u64, number: u64) -> Rng {
    let mut of_domain = Rng::with_seed(seed ^ domain.rotate_left(32));
    Rng::with_seed(of_domain.u64(..) ^ number)
}

/// A number below 2^`bits`, of any magnitude with the same probability.
fn magnitude(rng: &mut Rng, bits: u32) -> u64 {
    let bits = rng.u32(0..=bits);
    rng.u64(0..1 << bits)
}

fn one_in(rng: &mut Rng, n: u32) -> bool {
    rng.u32(0..n) == 0
}

impl Part {
    fn new(rng: &mut Rng) -> Self {
        let bits = if one_in(rng, 50) { 21 } else { 17 };
        Self {
            mss: one_in(rng, 3).then(|| rng.u32(216..1500)),
            receive_buffer: one_in(rng, 3).then(|| rng.usize(4096..100_000)),
            send_buffer: one_in(rng, 4).then(|| rng.usize(4096..100_000)),
            clamp: one_in(rng, 6).then(|| rng.usize(2000..100_000)),
            nodelay: rng.bool(),
            bytes: magnitude(rng, bits),
            begins: Begins::AtOnce,
            largest_write: rng.usize(1..50_000).max(500),
            largest_read: rng.usize(1..50_000).max(500),
            pauses: one_in(rng, 4).then(|| rng.u32(1..20)),
            seed: rng.u64(..),
        }
    }
}

impl Script {
    /// Connection `number` of this seed.
    pub fn new(seed: u64, number: u64) -> Self {
        let rng = &mut generator(seed, 1, number);
        let server = Part {
            mss: None,
            receive_buffer: None,
            clamp: None,
            ..Part::new(rng)
        };
        let mut parts = [Part::new(rng), server];
        let by = Role::BOTH[rng.usize(0..2)];
        let broken_off = &mut parts[by.other() as usize];
        let ending = match rng.u32(0..10) {
            0 => Ending::Reset {
                by,
                after: broken_off.bytes,
            },
            1 => {
                broken_off.bytes += 1;
                let after = rng.u64(0..broken_off.bytes);
                Ending::Reset { by, after }
            }
            2 => {
                broken_off.bytes += 1;
                let after = rng.u64(0..broken_off.bytes);
                Ending::Unread { by, after }
            }
            _ => Ending::Orderly,
        };
        if ending.broken_off() == Some((Role::Client, 0)) {
            // Once this is acknowledged the server has the connection. A client that gives up before it
            // could have it is one that a server behind a proxy need not hear of.
            parts[Role::Client as usize].bytes += 1;
        }
        // One end at most waits for the other, and never for what will not come.
        let waits = match ending {
            Ending::Orderly => Role::BOTH[rng.usize(0..2)],
            _ => by.other(),
        };
        parts[waits as usize].begins = match rng.u32(0..4) {
            0 if ending == Ending::Orderly => Begins::AfterFin,
            0 | 1 => Begins::AfterAll,
            _ => Begins::AtOnce,
        };
        Self {
            number,
            v6: rng.bool(),
            listener: rng.usize(0..LISTENERS.len()),
            parts,
            ending,
        }
    }

    pub fn part(&self, role: Role) -> &Part {
        &self.parts[role as usize]
    }

    /// How many bytes an end receives.
    pub fn receives(&self, role: Role) -> u64 {
        match self.ending.broken_off() {
            Some((by, after)) if by == role => after,
            _ => self.part(role.other()).bytes,
        }
    }
}

/// The stacks of a group of connections: of the client, and of the server.
pub fn stacks(seed: u64, group: u64, server_group: u64) -> [Stack; 2] {
    let client = generator(seed, 2, group).u64(..);
    // Each server offers another combination.
    let ecn = generator(seed, 3, server_group).u64(0..4) << 3;
    [client, server_group | ecn].map(|bits| Stack {
        timestamps: bits & 1 == 0,
        sack: bits & 2 == 0,
        scaling: bits & 4 == 0,
        ecn: match bits >> 3 & 3 {
            0 => Ecn::Off,
            1 => Ecn::Accept,
            _ => Ecn::Request,
        },
    })
}
