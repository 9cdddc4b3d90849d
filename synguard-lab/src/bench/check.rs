//! Whether what was measured is what was to be measured: every packet must have left as it should.

use anyhow::{Result, ensure};
use synguard_common::verdict::{Action, Reason};

use super::{
    harness::Target,
    paths::{Hook, Leaves, Path},
    scene::Counts,
};
use crate::testrun;

/// Whether one of the lab's own programs did what it is for.
pub fn expect(target: Target, value: u32, action: testrun::Action) -> Result<()> {
    ensure!(
        testrun::Action::from(value) == action,
        "{target:?} returned {value} instead of {action}"
    );
    Ok(())
}

/// Whether every packet left as it should.
pub fn check(path: &Path, packets: u32, value: u32, before: &Counts, after: &Counts) -> Result<()> {
    let share = u64::from(packets) / path.leaves.len() as u64;
    let mut expected = *before;
    for leaves in path.leaves {
        match leaves {
            Leaves::Service(reason) => expected.ours[*reason as usize] += share,
            Leaves::NoService(reason) => expected.none[*reason as usize] += share,
            Leaves::Observed(reason) => expected.observed[*reason as usize] += share,
            Leaves::Uncounted => {}
        }
    }
    ensure!(
        expected == *after,
        "the packets did not leave as {:?}, but {}",
        path.leaves,
        difference(before, after)
    );
    let action = path.leaves.last().map(|leaves| leaves.action());
    let returned = match path.hook {
        Hook::In => match testrun::Action::from(value) {
            testrun::Action::Pass => Some(Action::Pass),
            testrun::Action::Tx => Some(Action::Answer),
            testrun::Action::Drop => Some(Action::Drop),
            _ => None,
        },
        // TC_ACT_UNSPEC (the next filter, if there is one, decides), TC_ACT_OK and TC_ACT_SHOT.
        Hook::Admit | Hook::Out => match value {
            u32::MAX | 0 => Some(Action::Pass),
            2 => Some(Action::Drop),
            _ => None,
        },
    };
    ensure!(
        returned == action,
        "the program returned {value}, which is {returned:?} instead of {action:?}"
    );
    Ok(())
}

/// What was counted, for people.
fn difference(before: &Counts, after: &Counts) -> String {
    let mut parts = Vec::new();
    for (whose, before, after) in [
        ("of no service", &before.none, &after.none),
        ("of the service", &before.ours, &after.ours),
        ("observed", &before.observed, &after.observed),
    ] {
        for reason in Reason::ALL {
            let count = after[*reason as usize] - before[*reason as usize];
            if count > 0 {
                parts.push(format!("{count} {whose} as {}", reason.label()));
            }
        }
    }
    if parts.is_empty() {
        "were not counted".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use synguard_common::abi::REASON_SLOTS;

    use super::{super::paths, *};

    const NOTHING: Counts = Counts {
        none: [0; REASON_SLOTS],
        ours: [0; REASON_SLOTS],
        observed: [0; REASON_SLOTS],
    };

    fn path(name: &str) -> &'static Path {
        paths::all().find(|path| path.name == name).unwrap()
    }

    #[test]
    fn every_packet_must_leave_for_the_reason() {
        const TX: u32 = 3;
        let path = path("guarded_syn_v4");
        let mut after = NOTHING;
        after.ours[Reason::Challenged as usize] = 10;
        check(path, 10, TX, &NOTHING, &after).unwrap();
        // All but one.
        after.ours[Reason::Challenged as usize] = 9;
        after.ours[Reason::NoKey as usize] = 1;
        let error = check(path, 10, TX, &NOTHING, &after)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("9 of the service as challenged, 1 of the service as no_key"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_did_not_run_is_found_out() {
        // What the harness returns where there is nothing to call.
        const SHOT: u32 = 2;
        let error = check(path("tc_out_data"), 10, SHOT, &NOTHING, &NOTHING).unwrap_err();
        assert!(
            error.to_string().starts_with("the program returned 2"),
            "{error}"
        );
        check(path("tc_out_data"), 10, 0, &NOTHING, &NOTHING).unwrap();
    }

    #[test]
    fn a_sequence_shares_the_packets() {
        let mut after = NOTHING;
        after.ours[Reason::SynTracked as usize] = 5;
        after.ours[Reason::HalfOpenReset as usize] = 5;
        check(path("calm_syn"), 10, 2, &NOTHING, &after).unwrap();
    }
}
