//! The Prometheus exporter. Nothing is counted here: each scrape asks the run loop for a
//! [`Snapshot`](crate::model::Snapshot), which reads the kernel's tables at that moment.
//!
//! [`families`] turns the snapshot into metrics, [`process`] adds the daemon's own, [`exposition`]
//! writes them in the format the scraper asks for, [`server`] answers HTTP.

pub mod exposition;
mod families;
mod forwarding;
mod process;
pub mod server;

pub use exposition::{Format, render};
pub use server::{Listener, bind, serve};
