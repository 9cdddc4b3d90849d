//! Tells bpf-linker what the kernels we run on can do.
//!
//! Loads and stores of any alignment: a packet's IP header starts at an odd multiple of two.
//! Without this, LLVM splits every 32-bit access to it into four, which doubles the time of a SYN.
//! The verifier allows such accesses on every architecture with efficient unaligned access (x86-64,
//! arm64). LLVM before 22 does not know the feature and says so; the programs are then slower and
//! no less right.

fn main() {
    println!("cargo:rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    println!("cargo:rerun-if-changed=build.rs");
}
