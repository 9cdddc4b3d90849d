//! The kernel side as the daemon sees it: load the programs, attach them to interfaces, compile
//! a configuration to table entries, apply them, read back what the kernel counted, and have frames
//! received and sent.
//!
//! [`load`] and [`attach`] are different steps with different errors: what cannot be loaded will
//! not load on any interface, what cannot be attached may attach to another or later.

pub mod apply;
pub mod attach;
pub mod batch;
pub mod copy;
pub mod error;
pub mod flows;
pub mod frames;
pub mod health;
pub mod inert;
pub mod jiffies;
pub mod kfunc;
pub mod ledger;
pub mod load;
pub mod maps;
pub mod packet;
pub mod pins;
pub mod programs;
pub mod qdisc;
mod raw;
pub mod severed;
pub mod shared;
pub mod sources;
pub mod states;
pub mod stats;
pub mod syncache;
pub mod tables;
pub mod testrun;
pub mod wire;
pub mod witness;

pub use attach::{Attachment, Device};
pub use error::{AttachError, LoadError};
pub use jiffies::Jiffies;
pub use ledger::Books;
pub use load::{Dataplane, Options, load, load_inert, load_pinned};
pub use maps::{FlowMaps, Maps};
pub use pins::Pins;
pub use states::States;
pub use tables::Tables;
