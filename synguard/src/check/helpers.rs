//! Which kernel helpers each program calls, read from the programs themselves, and whether the kernel
//! has them for that type of program: asked helper by helper, by loading two instructions.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
};

use aya::{
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use aya_obj::ProgramSection;

use super::facts::Unseen;
use crate::dataplane::{
    error::{errno, one_line},
    kfunc::KFUNCS,
    load,
};

/// BPF_JMP | BPF_CALL.
const OPCODE_CALL: u8 = 0x85;

/// A helper the programs may call.
struct Known {
    helper: BpfHelper,
    name: &'static str,
    /// The first Linux that has it.
    since: &'static str,
}

macro_rules! known {
    ($($name:ident $since:literal),* $(,)?) => {
        &[$(Known {
            helper: BpfHelper::$name,
            name: stringify!($name),
            since: $since,
        }),*]
    };
}

/// Every helper that the programs call; a test compares.
const HELPERS: &[Known] = known![
    BPF_FUNC_map_lookup_elem "3.19",
    BPF_FUNC_map_update_elem "3.19",
    BPF_FUNC_map_delete_elem "3.19",
    BPF_FUNC_l4_csum_replace "4.1",
    BPF_FUNC_clone_redirect "4.2",
    BPF_FUNC_skb_pull_data "4.9",
    BPF_FUNC_xdp_adjust_head "4.10",
    BPF_FUNC_xdp_adjust_meta "4.15",
    BPF_FUNC_xdp_adjust_tail "4.18",
    BPF_FUNC_sk_release "4.20",
    BPF_FUNC_map_push_elem "4.20",
    BPF_FUNC_skc_lookup_tcp "5.2",
    BPF_FUNC_jiffies64 "5.6",
    BPF_FUNC_skc_to_tcp_sock "5.9",
    BPF_FUNC_ktime_get_coarse_ns "5.11",
    BPF_FUNC_for_each_map_elem "5.13",
    BPF_FUNC_loop "5.17",
    BPF_FUNC_xdp_get_buff_len "5.18",
    BPF_FUNC_xdp_load_bytes "5.18",
];

/// What the kernel has of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Helpers {
    /// Different helpers that are called.
    pub called: usize,
    /// Programs that call them.
    pub programs: usize,
    /// What is missing: program, helper, and the first Linux that has it.
    pub missing: Vec<(String, &'static str, &'static str)>,
}

/// The helpers of each program by number, with the program's type.
type Calls = BTreeMap<String, (ProgramType, BTreeSet<u32>)>;

/// Asks the kernel for every helper of every program.
pub fn probe() -> Result<Helpers, Unseen> {
    let calls = calls().map_err(Unseen::Other)?;
    let mut found = Helpers {
        programs: calls.len(),
        ..Helpers::default()
    };
    let mut answers: BTreeMap<(bool, u32), bool> = BTreeMap::new();
    for (program, (kind, helpers)) in &calls {
        for known in HELPERS {
            let number = known.helper as u32;
            if !helpers.contains(&number) {
                continue;
            }
            let key = (*kind == ProgramType::Xdp, number);
            let there = match answers.get(&key) {
                Some(there) => *there,
                None => is_helper_supported(*kind, known.helper).map_err(|error| unseen(&error))?,
            };
            answers.insert(key, there);
            if !there {
                let name = known.name.trim_start_matches("BPF_FUNC_");
                found.missing.push((program.clone(), name, known.since));
            }
        }
    }
    let distinct: BTreeSet<u32> = answers.keys().map(|(_, number)| *number).collect();
    found.called = distinct.len();
    Ok(found)
}

/// Why something could not be asked.
pub(super) fn unseen(error: &ProgramError) -> Unseen {
    match errno(error) {
        Some(libc::EPERM | libc::EACCES) => Unseen::NeedsRoot,
        Some(number) => Unseen::Other(io::Error::from_raw_os_error(number).to_string()),
        None => Unseen::Other(one_line(error)),
    }
}

/// Reads which helpers the programs call, subprograms included.
fn calls() -> Result<Calls, String> {
    let mut object = load::object().map_err(|error| error.to_string())?;
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    object
        .relocate_calls(&sections)
        .map_err(|error| one_line(&error))?;
    let mut calls = Calls::new();
    for (name, program) in &object.programs {
        let kind = match program.section {
            ProgramSection::Xdp { .. } => ProgramType::Xdp,
            ProgramSection::SchedClassifier => ProgramType::SchedClassifier,
            _ => continue,
        };
        let Some(function) = object.functions.get(&program.function_key()) else {
            continue;
        };
        let helpers = function
            .instructions
            .iter()
            .filter(|instruction| instruction.code == OPCODE_CALL && instruction.src_reg() == 0)
            .map(|instruction| instruction.imm as u32)
            .filter(|number| KFUNCS.iter().all(|kfunc| kfunc.magic != *number))
            .collect();
        calls.insert(name.clone(), (kind, helpers));
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_helper_that_is_called_and_no_other() {
        let calls = calls().unwrap();
        let called: BTreeSet<u32> = calls.values().flat_map(|(_, h)| h.clone()).collect();
        let known: BTreeSet<u32> = HELPERS.iter().map(|known| known.helper as u32).collect();
        assert_eq!(called, known);
        assert!(calls.len() >= 8, "{calls:?}");
    }

    #[test]
    fn calls_of_subprograms_are_counted() {
        let calls = calls().unwrap();
        let (kind, helpers) = &calls["synguard_in"];
        assert_eq!(*kind, ProgramType::Xdp);
        assert!(helpers.contains(&(BpfHelper::BPF_FUNC_skc_lookup_tcp as u32)));
        assert!(!helpers.contains(&(BpfHelper::BPF_FUNC_clone_redirect as u32)));
        let (_, helpers) = &calls["synguard_out"];
        assert!(helpers.contains(&(BpfHelper::BPF_FUNC_clone_redirect as u32)));
    }
}
