//! The Grafana dashboard, as a real Prometheus fills it during two floods.

use super::{lab, save};

/// Makes it; takes a minute and a half.
pub fn make() -> anyhow::Result<()> {
    save("dashboard.svg", &lab(&["dashboard"])?)
}
