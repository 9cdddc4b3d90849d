//! `synguard top`: the services, live, over the control API.
//!
//! [`model`] makes rates and histories of snapshots, [`ui`] holds what the user chose, [`view`]
//! draws both into a buffer, as far as [`look`] says the terminal can show it; all of them are pure.
//! [`screen`] is the terminal, [`batch`] is for those who have none, and here they are put together.

pub mod batch;
pub mod look;
pub mod model;
pub mod screen;
pub mod ui;
pub mod view;

use std::{
    io::{self, Write as _},
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use crossterm::event::{Event, EventStream};
use futures_util::StreamExt as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use crate::{
    control::client::{Client, ClientError},
    human::now,
    model::Snapshot,
};
use look::Look;
use model::Model;
use screen::Screen;
use ui::{Next, Ui};
use view::Scene;

/// An answer that is late by more than this is missing. A daemon with many services on a busy
/// machine may need a moment.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often ages are brought up to date.
const TICK: Duration = Duration::from_secs(1);

/// What the daemon said, and when: halfway between question and answer.
struct Answer {
    asked: Instant,
    at: Instant,
    said: Result<Snapshot, ClientError>,
}

/// Asks the daemon at this moment.
async fn ask(client: &Client, when: Instant) -> Answer {
    sleep_until(when.into()).await;
    let asked = Instant::now();
    let said = client.status().await;
    Answer {
        asked,
        at: asked + asked.elapsed() / 2,
        said,
    }
}

/// Begins; a daemon that does not answer now is an error.
async fn begin(client: &Client) -> anyhow::Result<(Model, Instant)> {
    let answer = ask(client, Instant::now()).await;
    Ok((Model::new(answer.said?, answer.at), answer.asked))
}

/// Prints `frames` frames, or goes on for ever.
pub async fn print(
    client: Client,
    delay: Duration,
    frames: Option<u64>,
    json: bool,
    width: u16,
) -> anyhow::Result<()> {
    let (mut model, mut asked) = begin(&client).await?;
    let mut printed = 0;
    while frames.is_none_or(|frames| printed < frames) {
        let answer = ask(&client, asked + delay).await;
        asked = answer.asked;
        model.update(answer.said?, answer.at);
        let wall = now();
        let frame = if json {
            batch::json(&model, wall)?
        } else {
            let scene = Scene {
                model: &model,
                wall,
                taken: wall,
                silence: None,
                delay,
                look: Look {
                    unicode: false,
                    colours: false,
                },
                paused: false,
            };
            batch::text(&scene, width)
        };
        let mut stdout = io::stdout().lock();
        stdout.write_all(frame.as_bytes())?;
        stdout.flush()?;
        printed += 1;
    }
    Ok(())
}

/// Shows what goes on until the user, or somebody on their behalf, has seen enough.
pub async fn show(client: Client, delay: Duration, look: Look) -> anyhow::Result<()> {
    // Whoever has no daemon is told so on a terminal that is as it was.
    let (model, asked) = begin(&client).await?;
    let mut ends = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ]
    .into_iter()
    .map(signal)
    .collect::<io::Result<Vec<Signal>>>()
    .context("cannot wait for signals")?;
    let mut continued = signal(SignalKind::from_raw(signal_hook::consts::SIGCONT))
        .context("cannot wait for signals")?;

    let mut ui = Ui::new(&model);
    let mut live = Live {
        model,
        failure: None,
        delay,
        look,
    };
    let mut screen = Screen::take()?;
    let mut events = EventStream::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answer = pin!(ask(&client, asked + delay));
    loop {
        screen.draw(|frame| live.draw(&mut ui, frame))?;
        tokio::select! {
            answered = &mut answer => {
                let next = answered.asked + delay;
                live.take(answered);
                answer.set(ask(&client, next));
            }
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => match ui.key(key, &live.model) {
                    Next::Draw => {}
                    Next::Redraw => screen.redraw()?,
                    Next::Suspend => screen.suspend()?,
                    Next::Quit => return Ok(()),
                },
                // Another size, for one.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot read from this terminal"),
                None => return Ok(()),
            },
            () = any(&mut ends) => return Ok(()),
            _ = continued.recv() => screen.retake()?,
            _ = tick.tick() => {}
        }
    }
}

/// Waits for the first of these signals.
async fn any(signals: &mut [Signal]) {
    let waits = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
    futures_util::future::select_all(waits).await;
}

/// What goes on.
struct Live {
    model: Model,
    /// Why the last question has no answer.
    failure: Option<String>,
    delay: Duration,
    look: Look,
}

impl Live {
    fn take(&mut self, answer: Answer) {
        match answer.said {
            Ok(snapshot) => {
                self.model.update(snapshot, answer.at);
                self.failure = None;
            }
            // That it is waited for is said before it is given up and asked again.
            Err(ClientError::Hangs { .. }) => self.failure = None,
            Err(error) => self.failure = Some(crate::one_line(&error.to_string())),
        }
    }

    fn draw(&self, ui: &mut Ui, frame: &mut ratatui::Frame<'_>) {
        let age = self.model.at().elapsed();
        let silence = match &self.failure {
            Some(why) => Some((age, why.as_str())),
            None if age > self.delay + PATIENCE => Some((age, "still waiting")),
            None => None,
        };
        let wall = now();
        // Moved out for the while: drawing changes the rest of the choices.
        let paused = ui.paused.take();
        let model = paused.as_deref().unwrap_or(&self.model);
        let taken = wall.saturating_sub(model.at().elapsed().as_secs());
        let scene = Scene {
            model,
            // Ages stand still with everything else.
            wall: if paused.is_some() { taken } else { wall },
            taken,
            silence,
            delay: self.delay,
            look: self.look,
            paused: paused.is_some(),
        };
        view::draw(&scene, ui, frame.area(), frame.buffer_mut());
        ui.paused = paused;
    }
}
