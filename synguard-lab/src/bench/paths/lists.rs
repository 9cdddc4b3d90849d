//! What it costs that sources are listed: the same paths with a thousand and a hundred thousand of them.

use synguard_common::verdict::Reason;

use super::{GUARDED, Leaves, Path};
use crate::bench::frames::{self, Kind};

const ESTABLISHED: Path = Path {
    ring: |scene, _| frames::established(scene, Kind::V4),
    leaves: &[Leaves::Service(Reason::Established)],
    ..GUARDED
};

/// In the order of the results. A list stays from one to the next that has as many.
pub const PATHS: &[Path] = &[
    Path {
        name: "guarded_syn_v4_1k_sources",
        about: "SYN answered with a cookie, while 1,000 other addresses are blocked",
        sources: 1000,
        ..GUARDED
    },
    Path {
        name: "established_v4_1k_sources",
        about: "data of a connection, while 1,000 other addresses are blocked",
        sources: 1000,
        ..ESTABLISHED
    },
    Path {
        name: "guarded_syn_v4_100k_sources",
        about: "SYN answered with a cookie, while 100,000 other addresses are blocked",
        sources: 100_000,
        ..GUARDED
    },
    Path {
        name: "established_v4_100k_sources",
        about: "data of a connection, while 100,000 other addresses are blocked",
        sources: 100_000,
        ..ESTABLISHED
    },
];
