//! Real connections and floods through a guarded interface, in network namespaces. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bulk;
mod check;
mod client;
mod connections;
mod daemon;
mod differential;
mod establishment;
mod floods;
mod guard;
mod halfopen;
mod installed;
mod lists;
mod lives_on;
mod observability;
mod package;
mod patient;
mod programs;
mod proxy_matrix;
mod proxy_options;
mod proxy_rules;
mod proxy_servers;
mod proxy_site;
mod proxy_streams;
mod proxy_tuples;
mod routed;
mod short;
mod stacked;
mod terminal;
mod tune;
mod tuning;
