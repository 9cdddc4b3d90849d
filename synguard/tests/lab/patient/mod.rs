//! Tests that mostly wait: `cargo xtask test` runs several of them at a time, all others one by one.

mod command;
mod events;
mod explain;
mod faults;
mod proxy_patience;
mod release;
mod reset_sources;
mod services;
mod syncache;
mod top;
