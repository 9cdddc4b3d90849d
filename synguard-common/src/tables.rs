//! The kernel's tables, as the decisions see them. The eBPF side implements this over maps and
//! helpers, host tests over plain collections.

use crate::{
    abi::{Address, AddressEntry, EpochKey, HalfOpen, KEY_SLOTS, PortKey, ServiceConfig, Tuple},
    clock::Now,
    flow::{Flow, Net},
    verdict::Reason,
};

/// What the kernel's socket table holds for a tuple (`bpf_skc_lookup_tcp`: connections first, then
/// listeners).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Socket {
    /// Nothing: no connection and no listener.
    None,
    /// A socket in LISTEN that takes connections for this address and port.
    Listener,
    /// A half-open connection: a request socket in SYN_RECV (`TCP_NEW_SYN_RECV`).
    Request,
    /// A connection in TIME_WAIT.
    TimeWait,
    /// A connection in any other state.
    Connection,
}

/// What became of an insertion into the half-open table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is there now and was not before.
    New,
    /// It was there already.
    Exists,
    /// There is no room.
    Full,
}

/// The live state of one service, see [`crate::abi::ServiceState`].
pub trait State: Copy {
    /// `STATE_*`.
    fn state(self) -> u32;
    /// Connections in the half-open table.
    fn half_open(self) -> u64;
    /// Until when cookies are honoured though the service is calm, monotonic ns.
    fn grace_until(self) -> u64;
    /// Adds one half-open connection, atomically; the count it brings about.
    fn half_open_add(self) -> u64;
    /// Takes one away, atomically.
    fn half_open_sub(self);
    /// Turns the service guarded at `now` (monotonic ns); only one of several CPUs counts it.
    fn turn_guarded(self, now: u64);
}

/// One bucket of [`crate::abi::map::ADMISSIONS`].
pub trait Bucket: Copy {
    /// Entry `way`, below [`crate::abi::ADMISSION_WAYS`].
    fn get(self, way: usize) -> u64;
    /// Writes it.
    fn set(self, way: usize, value: u64);
}

/// All tables. Copied freely: on the kernel side it is no more than the program's context.
pub trait Tables: Copy {
    /// See [`State`].
    type State<'a>: State
    where
        Self: 'a;
    /// See [`Bucket`].
    type Bucket<'a>: Bucket
    where
        Self: 'a;

    /// `ADDRESSES`, then `PREFIXES` if there are any.
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// `PORTS`.
    fn port(&self, key: &PortKey) -> Option<u16>;
    /// `SERVICES`.
    fn service(&self, number: u16) -> Option<&ServiceConfig>;
    /// `STATES`; number 0 stands for all services, see [`crate::abi::ServiceState`].
    fn state(&self, number: u16) -> Option<Self::State<'_>>;
    /// A slot of `KEYS`, whatever epoch its key belongs to.
    fn key_slot(&self, slot: u32) -> Option<&EpochKey>;
    /// Both clocks.
    fn now(&self) -> Now;
    /// A bucket of `ADMISSIONS`.
    fn bucket(&self, index: u32) -> Option<Self::Bucket<'_>>;
    /// Zero, which the verifier takes for any number. Adding it makes the verifier forget what it
    /// knows of a value, and ways through the program that differ in nothing else are walked once:
    /// without it, every combination of VLAN tags, extension headers and TCP options is walked to
    /// the end, half a million instructions of the million allowed.
    fn zero(&self) -> usize;
    /// [`crate::abi::Runtime::seed`].
    fn seed(&self) -> u64;

    /// `HALF_OPEN`: an entry, copied.
    fn half_open(&self, tuple: &Tuple) -> Option<HalfOpen>;
    /// Inserts an entry unless there is one.
    fn half_open_insert(&self, tuple: &Tuple, entry: &HalfOpen) -> Inserted;
    /// Removes an entry; false where there was none.
    fn half_open_remove(&self, tuple: &Tuple) -> bool;
    /// Marks an entry as answered by the server with these initial sequence numbers.
    fn half_open_confirm(&self, tuple: &Tuple, client_isn: u32, server_isn: u32) -> bool;

    /// The kernel's socket table.
    fn socket<N: Net>(&self, flow: &Flow<N>) -> Socket;
}

/// The key of `epoch`, if it is in place.
#[inline(always)]
pub fn key<T: Tables>(tables: &T, epoch: u64) -> Option<&EpochKey> {
    match tables.key_slot(epoch as u32 % KEY_SLOTS) {
        Some(key) if key.epoch == epoch => Some(key),
        _ => None,
    }
}

/// How a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The service it belongs to, or [`crate::abi::SERVICE_NONE`].
    pub service: u16,
    /// Why.
    pub reason: Reason,
    /// The service is in mode observe: the packet passes, and the reason is counted as what would
    /// have been.
    pub observe: bool,
    /// It is a SYN (without ACK) for a service.
    pub syn: bool,
}

impl Verdict {
    /// The verdict on a packet of no service.
    #[inline(always)]
    pub const fn none(reason: Reason) -> Self {
        Self {
            service: crate::abi::SERVICE_NONE,
            reason,
            observe: false,
            syn: false,
        }
    }
}
