//! Real connections and floods through a guarded interface, in network namespaces. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod bulk;
mod check;
mod client;
mod command;
mod connections;
mod daemon;
mod differential;
mod establishment;
mod events;
mod explain;
mod floods;
mod guard;
mod halfopen;
mod installed;
mod lives_on;
mod observability;
mod package;
mod programs;
mod proxy_matrix;
mod proxy_options;
mod proxy_patience;
mod proxy_rules;
mod proxy_servers;
mod proxy_site;
mod proxy_streams;
mod proxy_tuples;
mod release;
mod reset_sources;
mod routed;
mod services;
mod short;
mod stacked;
mod terminal;
mod top;
mod tune;
