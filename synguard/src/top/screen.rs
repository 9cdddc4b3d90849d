//! The terminal, taken for as long as this lives and given back as it was: at the end, on an error,
//! and before a panic says what it has to say.

use std::io::{self, stdout};

use anyhow::Context as _;
use crossterm::{
    cursor::{Hide, Show},
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{DefaultTerminal, Frame};

/// A terminal in raw mode that shows its other screen.
pub struct Screen(DefaultTerminal);

impl Screen {
    /// Takes the terminal.
    pub fn take() -> anyhow::Result<Self> {
        // Sets the panic hook too.
        ratatui::try_init()
            .map(Self)
            .context("cannot draw on this terminal")
    }

    /// Draws a frame: what differs from the last one.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> anyhow::Result<()> {
        self.0.draw(draw).context("cannot draw on this terminal")?;
        Ok(())
    }

    /// Has the next frame drawn as a whole.
    pub fn redraw(&mut self) -> anyhow::Result<()> {
        // Not `clear`: it asks the terminal where the cursor is, and whoever waits for keys would
        // read the answer.
        let size = self.0.size();
        size.and_then(|size| self.0.resize(size.into()))
            .context("cannot draw on this terminal")
    }

    /// Gives the terminal to the shell, stops, and takes it again when the shell says so.
    pub fn suspend(&mut self) -> anyhow::Result<()> {
        give_back().context("cannot leave the terminal")?;
        // Sent to this very thread, so that nothing is drawn before it takes effect.
        signal_hook::low_level::raise(signal_hook::consts::SIGTSTP).context("cannot stop")?;
        self.retake()
    }

    /// Takes the terminal again after somebody else had it.
    pub fn retake(&mut self) -> anyhow::Result<()> {
        enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen, Hide))
            .context("cannot draw on this terminal")?;
        self.redraw()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        give_back().ok();
    }
}

fn give_back() -> io::Result<()> {
    // Both, whatever becomes of one.
    let screen = execute!(stdout(), LeaveAlternateScreen, Show);
    disable_raw_mode().and(screen)
}
