//! The Grafana dashboard that is shipped: what of it matters here ([`Dashboard`]), whether Grafana
//! would take it ([`schema`]), and what it shows ([`picture`]).

pub mod picture;
pub mod schema;

mod chart;
mod unit;

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::{observed::deploy, prometheus::INTERVAL};

/// A dashboard.
#[derive(Clone, Debug, Deserialize)]
pub struct Dashboard {
    /// Its title.
    pub title: String,
    /// Rows are panels too.
    pub panels: Vec<Panel>,
}

/// A panel.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Panel {
    /// `timeseries`, `stat`, `state-timeline`, `table` or `row`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its title.
    pub title: String,
    /// Where it is.
    pub grid_pos: GridPos,
    /// How values are shown.
    #[serde(default)]
    pub field_config: FieldConfig,
    /// What it asks.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// What is done to the columns of a table.
    #[serde(default)]
    pub transformations: Vec<Transformation>,
}

/// A place on a grid of 24 columns.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct GridPos {
    /// Column.
    pub x: u32,
    /// Row.
    pub y: u32,
    /// Columns.
    pub w: u32,
    /// Rows.
    pub h: u32,
}

/// How values are shown.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct FieldConfig {
    /// All of them.
    pub defaults: Field,
    /// Some of them.
    #[serde(default)]
    pub overrides: Vec<Override>,
}

/// How a value is shown.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Field {
    /// Grafana's name of its unit.
    #[serde(default)]
    pub unit: String,
    /// Digits behind the point, where they are fixed.
    pub decimals: Option<usize>,
    /// Where the axis begins, where that is fixed.
    pub min: Option<f64>,
    /// Texts and colours of values.
    #[serde(default)]
    pub mappings: Vec<Mapping>,
    /// Colours from some value on.
    #[serde(default)]
    pub thresholds: Thresholds,
    /// What depends on the panel's type.
    #[serde(default)]
    pub custom: Value,
}

/// Texts and colours by value.
#[derive(Clone, Debug, Deserialize)]
pub struct Mapping {
    /// By the value as text.
    pub options: BTreeMap<String, Mapped>,
}

/// Text and colour of a value.
#[derive(Clone, Debug, Deserialize)]
pub struct Mapped {
    /// Its text.
    pub text: String,
    /// Its colour.
    pub color: String,
}

/// Colours from some value on.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Thresholds {
    /// In ascending order.
    pub steps: Vec<Step>,
}

/// A colour from some value on.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// The colour.
    pub color: String,
    /// The value; the first has none.
    pub value: Option<f64>,
}

/// What is different for some series.
#[derive(Clone, Debug, Deserialize)]
pub struct Override {
    /// Which.
    pub matcher: Matcher,
    /// What.
    pub properties: Vec<Property>,
}

/// Which series.
#[derive(Clone, Debug, Deserialize)]
pub struct Matcher {
    /// How they are found.
    pub id: String,
    /// What they are found by.
    pub options: Value,
}

/// A property and its value.
#[derive(Clone, Debug, Deserialize)]
pub struct Property {
    /// Its path.
    pub id: String,
    /// Its value.
    pub value: Value,
}

/// A query.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its letter.
    pub ref_id: String,
    /// In PromQL, with variables.
    pub expr: String,
    /// What a series is called, with labels in double braces.
    pub legend_format: String,
}

/// What is done to an answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Transformation {
    /// Its name.
    pub id: String,
    /// Its options.
    pub options: Value,
}

/// The shipped file.
pub fn text() -> Result<String> {
    let path = deploy().join("grafana/synguard.json");
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

impl Dashboard {
    /// Reads the shipped one.
    pub fn shipped() -> Result<Self> {
        serde_json::from_str(&text()?).context("deploy/grafana/synguard.json")
    }

    /// Panels that ask something.
    pub fn asking(&self) -> impl Iterator<Item = &Panel> {
        self.panels.iter().filter(|panel| !panel.targets.is_empty())
    }
}

impl Target {
    /// The query with "All" for each variable, and a rate over four scrapes, as Grafana has it.
    pub fn query(&self) -> String {
        let rate = format!("{}s", 4 * INTERVAL.as_secs());
        self.expr
            .replace("$__rate_interval", &rate)
            .replace("$instance", ".*")
            .replace("$service", ".*")
    }

    /// What a series with these labels is called.
    pub fn legend(&self, labels: &BTreeMap<String, String>) -> String {
        let mut legend = self.legend_format.clone();
        for (name, value) in labels {
            legend = legend.replace(&format!("{{{{{name}}}}}"), value);
        }
        legend
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_labels_are_filled_in() {
        let target = Target {
            ref_id: "A".into(),
            expr: "rate(x{service=~\"$service\"}[$__rate_interval])".into(),
            legend_format: "{{service}} by {{reason}}".into(),
        };
        assert_eq!(target.query(), "rate(x{service=~\".*\"}[4s])");
        let labels = [("service", "web"), ("reason", "no_ack")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(target.legend(&labels.into()), "web by no_ack");
    }
}
