//! The synguard command.
fn main() {}
