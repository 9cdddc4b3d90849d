//! Frames for scripts and tickets: text or JSON, one after the other.

use std::time::Duration;

use serde::Serialize;

use super::{
    model::{Model, Rates},
    view::{self, Scene},
};
use crate::model::Mode;

/// A frame as JSON: one line.
#[derive(Debug, Serialize)]
struct Frame<'a> {
    /// Seconds since the epoch.
    time: u64,
    /// What rates are taken over; `null` where the daemon began anew in between.
    interval_seconds: Option<f64>,
    /// TCP packets per second that no service covers.
    unprotected_per_second: Option<f64>,
    services: Vec<Service<'a>>,
}

#[derive(Debug, Serialize)]
struct Service<'a> {
    name: &'a str,
    mode: Mode,
    state: &'a str,
    state_since: Option<u64>,
    half_open: u64,
    low: u32,
    high: u32,
    per_second: Option<Rates>,
}

/// A frame as text, with an empty line behind it.
pub fn text(scene: &Scene<'_>, width: u16) -> String {
    view::plain(scene, width)
        .iter()
        .flat_map(|line| [line.as_str(), "\n"])
        .chain(["\n"])
        .collect()
}

/// A frame as a line of JSON.
pub fn json(model: &Model, time: u64) -> serde_json::Result<String> {
    let frame = Frame {
        time,
        interval_seconds: model.interval().as_ref().map(Duration::as_secs_f64),
        unprotected_per_second: model.unprotected(),
        services: model
            .services()
            .map(|(status, track)| Service {
                name: &status.name,
                mode: status.mode,
                state: &status.state,
                state_since: status.state_since,
                half_open: status.half_open,
                low: status.low,
                high: status.high,
                per_second: track.rates,
            })
            .collect(),
    };
    Ok(serde_json::to_string(&frame)? + "\n")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::top::model::tests::{later, snapshot};

    #[test]
    fn json_has_the_rates() {
        let (first, t) = (snapshot(), Instant::now());
        let mut model = Model::new(first.clone(), t);
        model.update(later(&first, "challenged", 500), t + Duration::from_secs(2));
        let line = json(&model, 1_800_000_000).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["interval_seconds"], 2.0);
        let web = &value["services"][0];
        assert_eq!(web["name"], "web");
        assert_eq!(web["state"], "guarded");
        assert_eq!(web["per_second"]["challenged"], 250.0);
        assert_eq!(value["services"][2]["per_second"]["syns"], 0.0);

        let mut anew = first;
        anew.started_at += 1;
        model.update(anew, t + Duration::from_secs(3));
        let line = json(&model, 1_800_000_001).unwrap();
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(value["interval_seconds"].is_null());
        assert!(value["services"][0]["per_second"].is_null());
    }
}
