//! The picture of the Grafana dashboard: what its panels show of two floods, by a real Prometheus.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    dashboard::{Dashboard, picture},
    flood::Kind,
    observed::{Act, Observed},
    tool,
};

/// Prometheus looks for what to scrape every five seconds, and a rate takes two scrapes.
const LEAD: Duration = Duration::from_secs(8);

/// Draws it.
pub(super) fn picture(synguard: &Path) -> Result<String> {
    let prometheus =
        tool::find("prometheus").context("there is no prometheus; try cargo xtask setup")?;
    let dashboard = Dashboard::shipped()?;
    let observed = Observed::new(synguard, &prometheus)?;
    let seconds = Duration::from_secs;
    let (from, to) = observed.play(&[
        Act::Calm(LEAD + seconds(8)),
        Act::Flood(Kind::Syn, 0, 150_000, seconds(12)),
        Act::Flood(Kind::Mixed, 0, 100_000, seconds(12)),
        Act::Calm(seconds(28)),
        Act::Flood(Kind::Syn, 1, 100_000, seconds(15)),
    ])?;
    picture::draw(
        &dashboard,
        &observed.prometheus,
        from + LEAD.as_secs_f64(),
        to,
    )
}
