//! `synguard top` in a terminal of 80 columns and 24 lines, while a flood lasts.

use super::{lab, save};

/// Makes it; takes half a minute.
pub fn make() -> anyhow::Result<()> {
    save("top.svg", &lab(&["top"])?)
}
