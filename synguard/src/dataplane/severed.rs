//! Links of this process that are attached to nothing any more: whoever may can take a program off by
//! its link (`bpftool link detach`), and nobody is told.
//!
//! A link's description in /proc names the interface it is on. To ask the kernel for the same by the
//! bare system call would take the descriptor, which aya keeps to itself.

use std::{collections::BTreeSet, fs, io};

/// Their ids.
pub fn links() -> io::Result<BTreeSet<u32>> {
    let descriptions = fs::read_dir("/proc/self/fdinfo")?;
    // A descriptor may be closed by another thread while we look.
    let read = |entry: fs::DirEntry| fs::read_to_string(entry.path()).ok();
    Ok(descriptions
        .flatten()
        .filter_map(read)
        .filter_map(|description| severed(&description))
        .collect())
}

/// The id, where this describes a link without an interface.
fn severed(description: &str) -> Option<u32> {
    let field = |name: &str| -> Option<u32> {
        let value = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
        description.lines().find_map(value)
    };
    (field("ifindex:")? == 0)
        .then(|| field("link_id:"))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_without_an_interface_is_severed() {
        let link = |index: u32| {
            format!(
                "pos:\t0\nflags:\t02000002\nmnt_id:\t16\nino:\t2075\nlink_type:\ttcx\nlink_id:\t17\n\
                 prog_tag:\t0d1c9e5a2bb4cf35\nprog_id:\t310\nifindex:\t{index}\nattach_type:\ttcx_egress (47)\n"
            )
        };
        assert_eq!(severed(&link(0)), Some(17));
        assert_eq!(severed(&link(3)), None);
        assert_eq!(
            severed("pos:\t0\nflags:\t02\nmap_type:\t2\nmap_id:\t9\n"),
            None
        );
        assert_eq!(severed("pos:\t0\nlink_type:\titer\nlink_id:\t5\n"), None);
    }
}
