//! Turns calls of made-up helpers into kfunc calls, in the bytes of the object.
//!
//! The programs call a kernel function that aya has no wrapper for as a helper with a number no
//! helper has (`call 0x7ffffff1`). Before the object is loaded, each such instruction becomes a
//! call of the function with that BTF id in the running kernel: source register 2
//! (`BPF_PSEUDO_KFUNC_CALL`) and the id as immediate. The verifier then checks it like any other.

use object::{Object as _, ObjectSection as _, SectionKind};

/// One kernel function and the number that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kfunc {
    /// Immediate of the call instruction in the object.
    pub magic: u32,
    /// Name in the kernel's BTF.
    pub name: &'static str,
}

/// Makes a socket from a valid ACK; Linux 6.9 and newer.
pub const SK_ASSIGN_TCP_REQSK: Kfunc = Kfunc {
    magic: 0x7fff_fff1,
    name: "bpf_sk_assign_tcp_reqsk",
};

/// Every kernel function the programs call.
pub const KFUNCS: &[Kfunc] = &[SK_ASSIGN_TCP_REQSK];

/// Numbers from here on are no helper's: each must be one of [`KFUNCS`].
const MAGIC_FIRST: u32 = 0x7fff_ff00;

pub(super) const INSTRUCTION: usize = 8;
/// BPF_JMP | BPF_CALL.
pub(super) const OPCODE_CALL: u8 = 0x85;
/// Registers of a helper call: both zero.
pub(super) const HELPER_REGISTERS: u8 = 0x00;
/// Registers of a kfunc call: source register 2.
const KFUNC_REGISTERS: u8 = 0x20;

/// Why an object cannot be patched.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Not an object file.
    #[error("no ELF object: {0}")]
    Object(String),
    /// A call that stands for no known function.
    #[error("call of unknown kernel function {magic:#x} in section {section}")]
    Unknown {
        /// Its number.
        magic: u32,
        /// Where.
        section: String,
    },
}

/// What [`patch`] did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Patched {
    /// Calls rewritten.
    pub calls: usize,
    /// Functions that are called but that the kernel does not have; their calls are left alone.
    pub missing: Vec<&'static str>,
}

/// Rewrites the calls in `object`; `btf_id` gives a function's id, `None` where the kernel has no
/// such function.
pub fn patch(
    object: &mut [u8],
    btf_id: impl Fn(&str) -> Option<u32>,
) -> Result<Patched, PatchError> {
    let mut patched = Patched::default();
    for (name, range) in code(object)? {
        let Some(section) = object.get_mut(range) else {
            return Err(PatchError::Object(format!(
                "section {name} lies outside the file"
            )));
        };
        for instruction in section.chunks_exact_mut(INSTRUCTION) {
            let Some(magic) = magic_of(instruction) else {
                continue;
            };
            let Some(kfunc) = KFUNCS.iter().find(|kfunc| kfunc.magic == magic) else {
                return Err(PatchError::Unknown {
                    magic,
                    section: name,
                });
            };
            match btf_id(kfunc.name) {
                Some(id) => {
                    instruction[1] = KFUNC_REGISTERS;
                    instruction[4..8].copy_from_slice(&id.to_le_bytes());
                    patched.calls += 1;
                }
                None if patched.missing.contains(&kfunc.name) => {}
                None => patched.missing.push(kfunc.name),
            }
        }
    }
    Ok(patched)
}

/// The number a call instruction stands for, if it is one of ours.
fn magic_of(instruction: &[u8]) -> Option<u32> {
    let [OPCODE_CALL, HELPER_REGISTERS, 0, 0, immediate @ ..] = instruction else {
        return None;
    };
    let immediate = u32::from_le_bytes(immediate.try_into().ok()?);
    (MAGIC_FIRST..=i32::MAX as u32)
        .contains(&immediate)
        .then_some(immediate)
}

/// Names and file ranges of the sections with instructions. The second word of a 16-byte
/// immediate load starts with a zero opcode, so that eight-byte steps meet no false call.
pub(super) fn code(object: &[u8]) -> Result<Vec<(String, std::ops::Range<usize>)>, PatchError> {
    let file =
        object::File::parse(object).map_err(|error| PatchError::Object(error.to_string()))?;
    Ok(file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text)
        .filter_map(|section| {
            let (offset, size) = section.file_range()?;
            let start = usize::try_from(offset).ok()?;
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            Some((section.name().unwrap_or("?").to_owned(), start..end))
        })
        .collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const CALL: [u8; 8] = [0x85, 0, 0, 0, 0xf1, 0xff, 0xff, 0x7f];
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

    /// A little-endian 64-bit ELF object with one section of each kind: `tc` with instructions
    /// and `data` with bytes that only look like them.
    pub fn object(tc: &[[u8; 8]], data: &[[u8; 8]]) -> Vec<u8> {
        let names = b"\0classifier\0.data\0.shstrtab\0";
        let (tc, data): (Vec<u8>, Vec<u8>) = (tc.concat(), data.concat());
        let tc_at = 64;
        let data_at = tc_at + tc.len();
        let names_at = data_at + data.len();
        let headers_at = (names_at + names.len()).next_multiple_of(8);
        let mut file = vec![0; headers_at];
        file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
        file[16..18].copy_from_slice(&1u16.to_le_bytes()); // relocatable
        file[18..20].copy_from_slice(&247u16.to_le_bytes()); // EM_BPF
        file[20..24].copy_from_slice(&1u32.to_le_bytes());
        file[40..48].copy_from_slice(&(headers_at as u64).to_le_bytes());
        file[52..54].copy_from_slice(&64u16.to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&4u16.to_le_bytes());
        file[62..64].copy_from_slice(&3u16.to_le_bytes());
        file[tc_at..data_at].copy_from_slice(&tc);
        file[data_at..names_at].copy_from_slice(&data);
        file[names_at..names_at + names.len()].copy_from_slice(names);
        let mut section = |name: u32, kind: u32, flags: u64, at: usize, size: usize| {
            let mut header = [0u8; 64];
            header[0..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&flags.to_le_bytes());
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            file.extend_from_slice(&header);
        };
        section(0, 0, 0, 0, 0);
        section(1, 1, 2 | 4, tc_at, data_at - tc_at); // alloc, exec
        section(12, 1, 2 | 1, data_at, names_at - data_at); // alloc, write
        section(18, 3, 0, names_at, names.len());
        file
    }

    #[test]
    fn calls_in_code_become_kfunc_calls_and_data_is_left_alone() {
        let mut bytes = object(&[CALL, EXIT, CALL], &[CALL]);
        let done = patch(&mut bytes, |name| {
            (name == "bpf_sk_assign_tcp_reqsk").then_some(0x0001_e240)
        })
        .unwrap();
        assert_eq!(
            done,
            Patched {
                calls: 2,
                missing: vec![]
            }
        );
        let kfunc = [0x85, 0x20, 0, 0, 0x40, 0xe2, 0x01, 0x00];
        assert_eq!(bytes, object(&[kfunc, EXIT, kfunc], &[CALL]));
        // Nothing is left for a second pass.
        assert_eq!(patch(&mut bytes, |_| Some(7)).unwrap(), Patched::default());
    }

    #[test]
    fn a_kernel_without_the_function_leaves_the_object_as_it_was() {
        let mut bytes = object(&[CALL, CALL], &[]);
        let before = bytes.clone();
        let done = patch(&mut bytes, |_| None).unwrap();
        assert_eq!(
            done,
            Patched {
                calls: 0,
                missing: vec!["bpf_sk_assign_tcp_reqsk"]
            }
        );
        assert_eq!(bytes, before);
    }

    #[test]
    fn a_call_that_stands_for_nothing_is_an_error() {
        let mut unknown = CALL;
        unknown[4] = 0x77;
        assert_eq!(
            patch(&mut object(&[EXIT, unknown], &[]), |_| Some(1)),
            Err(PatchError::Unknown {
                magic: 0x7fff_ff77,
                section: "classifier".into()
            })
        );
    }

    #[test]
    fn helper_calls_are_not_ours() {
        let helper = [0x85, 0, 0, 0, 1, 0, 0, 0];
        let mut bytes = object(&[helper, EXIT], &[]);
        assert_eq!(patch(&mut bytes, |_| Some(1)).unwrap(), Patched::default());
    }

    #[test]
    fn garbage_is_refused() {
        assert!(matches!(
            patch(&mut [1, 2, 3], |_| Some(1)),
            Err(PatchError::Object(_))
        ));
    }
}
