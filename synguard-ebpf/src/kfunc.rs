//! Kernel functions that have no helper number.
//!
//! aya cannot express a kfunc call. Here it is a call of a helper number that no kernel has; the
//! loader (`synguard::dataplane`) finds the instruction and makes it a call of the function, by its
//! BTF id, before the kernel sees the program.

use aya_ebpf::bindings::__sk_buff;
use synguard_common::admit::RequestAttributes;

/// `int bpf_sk_assign_tcp_reqsk(struct __sk_buff *, struct sock *, struct bpf_tcp_req_attrs *,
/// int)`: makes a request socket with these attributes for the listener `sock` and hands it to the
/// skb. 0, or a negative error.
///
/// # Safety
/// `skb` is the context of a TC ingress program and `sock` came from `bpf_skc_to_tcp_sock`.
#[inline(always)]
pub unsafe fn sk_assign_tcp_reqsk(
    skb: *mut __sk_buff,
    sock: *mut core::ffi::c_void,
    attributes: &mut RequestAttributes,
) -> i32 {
    #[cfg(target_arch = "bpf")]
    {
        let result: i64;
        // SAFETY: the calling convention of eBPF: arguments in r1 to r5, all five clobbered,
        // result in r0.
        unsafe {
            core::arch::asm!(
                "call 0x7ffffff1",
                inlateout("r1") skb => _,
                inlateout("r2") sock => _,
                inlateout("r3") attributes as *mut RequestAttributes => _,
                inlateout("r4") size_of::<RequestAttributes>() => _,
                lateout("r5") _,
                lateout("r0") result,
            );
        }
        result as i32
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        let _ = (skb, sock, attributes);
        -1
    }
}
