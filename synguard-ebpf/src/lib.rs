//! Empty on purpose: cargo needs a library target here so that the crates which embed the eBPF
//! object can name this one as a build dependency and be rebuilt when it changes.
#![no_std]
