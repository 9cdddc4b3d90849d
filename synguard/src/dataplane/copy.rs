//! Copies what is in one map into another of the same shape, many entries to a system call
//! ([`super::batch`]): the flow table of a busy box has a hundred thousand buckets of a kilobyte.
//!
//! Programs may write to the source meanwhile. An array entry is then as good as any look at it.

use std::{io, ops::ControlFlow};

use aya::maps::{MapData, MapError, MapInfo};

use super::batch;

/// Why a map was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// What they are cannot be asked.
    #[error(transparent)]
    Info(#[from] MapError),
    /// Another layout.
    #[error("its entries are laid out in another way")]
    Shape,
    /// The kernel said no.
    #[error("cannot {what} it: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Copies every entry of `from` (an array or a hash, not one per CPU) to `to`; says how many.
pub fn copy(from: &MapData, to: &MapData) -> Result<u64, CopyError> {
    let (source, target) = (from.info()?, to.info()?);
    let shape = |info: &MapInfo| -> Result<_, MapError> {
        Ok((info.map_type()?, info.key_size(), info.value_size()))
    };
    if shape(&source)? != shape(&target)? || source.max_entries() > target.max_entries() {
        return Err(CopyError::Shape);
    }
    let mut copied = 0;
    let failed = batch::read(from, |entries| match batch::write(to, entries) {
        Ok(()) => {
            copied += u64::from(entries.count);
            ControlFlow::Continue(())
        }
        Err(error) => ControlFlow::Break(error),
    });
    match failed.map_err(|source| kernel("read", source))? {
        Some(source) => Err(kernel("write a copy of", source)),
        None => Ok(copied),
    }
}

fn kernel(what: &'static str, source: io::Error) -> CopyError {
    CopyError::Kernel { what, source }
}
