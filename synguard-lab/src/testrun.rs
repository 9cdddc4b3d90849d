//! Runs a loaded program on one frame, by `BPF_PROG_TEST_RUN`.

use std::{fmt, time::Duration};

use anyhow::{Context as _, Result};
use aya::{TestRun, TestRunOptions, TestRunResult};
use synguard::dataplane::testrun::xdp_context;

/// What an XDP program says to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// `XDP_ABORTED`, which no program should return.
    Aborted,
    /// `XDP_DROP`.
    Drop,
    /// `XDP_PASS`.
    Pass,
    /// `XDP_TX`.
    Tx,
    /// `XDP_REDIRECT`.
    Redirect,
    /// A number that is no action.
    Unknown(u32),
}

impl From<u32> for Action {
    fn from(value: u32) -> Self {
        match value {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What came of one run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The program's return value. For a TC program see [`Outcome::value`].
    pub action: Action,
    /// The return value as a number.
    pub value: u32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
    /// Mean time of one run, by the kernel's clock.
    pub duration: Duration,
}

/// Runs a program once on a frame, as if it had come in by loopback of the calling thread's
/// namespace.
pub fn run<P>(program: &P, frame: &[u8]) -> Result<Outcome>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    execute(program, frame, None, 1)
}

/// Runs an XDP program once on a frame, as if it had come in by the device of this index in the
/// calling thread's namespace: call it inside `Netns::run`. The device must run an XDP program.
pub fn run_on<P>(program: &P, frame: &[u8], ifindex: u32) -> Result<Outcome>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    execute(program, frame, Some(ifindex), 1)
}

/// Runs a program `repeat` times. From the second run on it sees the frame as it left it: only for
/// programs that do not write, or that restore what they wrote.
pub fn repeat<P>(program: &P, frame: &[u8], ifindex: Option<u32>, repeat: u32) -> Result<Outcome>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    execute(program, frame, ifindex, repeat)
}

fn execute<P>(program: &P, frame: &[u8], ifindex: Option<u32>, repeat: u32) -> Result<Outcome>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    // Room to grow: a program may extend the packet up to what fits a page.
    let mut out = vec![0; frame.len() + 512];
    let context = ifindex.map(|index| xdp_context(frame.len(), index));
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: context.as_deref(),
        repeat,
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).context("BPF_PROG_TEST_RUN")?;
    out.truncate(result.data_size_out as usize);
    Ok(Outcome {
        action: result.return_value.into(),
        value: result.return_value,
        frame: out,
        duration: result.duration,
    })
}
