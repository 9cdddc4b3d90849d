//! Makes programs that send nothing, in the bytes of the object.
//!
//! Run by `BPF_PROG_TEST_RUN`, a program may do what it likes with the packet it is given, which is a
//! copy; and what its return value asks for is not done. But `bpf_clone_redirect` sends a packet by
//! itself, then and there, and the only device that a test run has is loopback, from where the packet
//! would go its way through the host. So each call of it becomes "done" (`r0 = 0`).

use super::kfunc::{HELPER_REGISTERS, INSTRUCTION, OPCODE_CALL, PatchError, code};

/// `bpf_clone_redirect` among the helpers (linux/bpf.h).
const CLONE_REDIRECT: u32 = 13;
/// `r0 = 0`: BPF_ALU64 | BPF_MOV | BPF_K.
const DONE: [u8; INSTRUCTION] = [0xb7, 0, 0, 0, 0, 0, 0, 0];

/// Rewrites the calls in `object`; says how many there were.
pub fn patch(object: &mut [u8]) -> Result<usize, PatchError> {
    let mut calls = 0;
    for (name, range) in code(object)? {
        let Some(section) = object.get_mut(range) else {
            return Err(PatchError::Object(format!(
                "section {name} lies outside the file"
            )));
        };
        for instruction in section.chunks_exact_mut(INSTRUCTION) {
            if instruction[..4] == [OPCODE_CALL, HELPER_REGISTERS, 0, 0]
                && instruction[4..] == CLONE_REDIRECT.to_le_bytes()
            {
                instruction.copy_from_slice(&DONE);
                calls += 1;
            }
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::kfunc::tests::object;

    #[test]
    fn what_sends_is_taken_out_and_nothing_else() {
        const SEND: [u8; 8] = [0x85, 0, 0, 0, 13, 0, 0, 0];
        // A function of ours, another helper, and bytes that are no instructions.
        const OWN: [u8; 8] = [0x85, 0x10, 0, 0, 13, 0, 0, 0];
        const OTHER: [u8; 8] = [0x85, 0, 0, 0, 14, 0, 0, 0];
        let mut bytes = object(&[SEND, OWN, OTHER, SEND], &[SEND]);
        assert_eq!(patch(&mut bytes), Ok(2));
        assert_eq!(bytes, object(&[DONE, OWN, OTHER, DONE], &[SEND]));
        assert_eq!(patch(&mut bytes), Ok(0));
    }
}
