//! The daemon and the command line of synguard, as a library.

pub mod model;
