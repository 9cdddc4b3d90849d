//! Whether Grafana would take a dashboard: the required part of its schema, version 39 (Grafana 10.4
//! and later migrate it), and what the schema cannot say: identifiers that are unique, variables that
//! exist, panels that do not lie on one another.
//!
//! Written after the types in the npm package `@grafana/schema` (`raw/dashboard`). Keys that it does not
//! know are mistakes here: Grafana would ignore them silently.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use Kind::{Array, Boolean, Number, Object, Text};

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Text,
    Number,
    Boolean,
    Object,
    Array,
}

/// A key, its type, and whether it must be there.
type Key = (&'static str, Kind, bool);

const VERSION: u64 = 39;
const COLUMNS: u64 = 24;

const DASHBOARD: &[Key] = &[
    ("uid", Text, true),
    ("title", Text, true),
    ("description", Text, false),
    ("tags", Array, true),
    ("schemaVersion", Number, true),
    ("version", Number, false),
    ("editable", Boolean, true),
    ("graphTooltip", Number, true),
    ("fiscalYearStartMonth", Number, false),
    ("liveNow", Boolean, false),
    ("links", Array, false),
    ("annotations", Object, true),
    ("time", Object, true),
    ("timepicker", Object, false),
    ("timezone", Text, true),
    ("refresh", Text, false),
    ("weekStart", Text, false),
    ("templating", Object, true),
    ("panels", Array, true),
];

const VARIABLE: &[Key] = &[
    ("name", Text, true),
    ("label", Text, true),
    ("type", Text, true),
    ("datasource", Object, false),
    ("current", Object, false),
    ("includeAll", Boolean, true),
    ("multi", Boolean, true),
    ("allValue", Text, false),
    ("hide", Number, true),
    ("options", Array, false),
    ("refresh", Number, true),
    ("regex", Text, false),
    ("skipUrlSync", Boolean, true),
    ("sort", Number, false),
];

const ROW: &[Key] = &[
    ("id", Number, true),
    ("type", Text, true),
    ("title", Text, true),
    ("collapsed", Boolean, true),
    ("gridPos", Object, true),
    ("panels", Array, true),
];

const PANEL: &[Key] = &[
    ("id", Number, true),
    ("type", Text, true),
    ("title", Text, true),
    ("description", Text, true),
    ("datasource", Object, true),
    ("gridPos", Object, true),
    ("fieldConfig", Object, true),
    ("options", Object, true),
    ("targets", Array, true),
    ("transformations", Array, false),
];

const TARGET: &[Key] = &[
    ("refId", Text, true),
    ("datasource", Object, true),
    ("editorMode", Text, true),
    ("expr", Text, true),
    ("legendFormat", Text, true),
    ("range", Boolean, false),
    ("instant", Boolean, false),
    ("format", Text, false),
];

const FIELD_CONFIG: &[Key] = &[("defaults", Object, true), ("overrides", Array, true)];

const FIELD: &[Key] = &[
    ("color", Object, true),
    ("unit", Text, true),
    ("decimals", Number, false),
    ("min", Number, false),
    ("max", Number, false),
    ("mappings", Array, true),
    ("thresholds", Object, true),
    ("custom", Object, false),
];

const GRID: &[Key] = &[
    ("x", Number, true),
    ("y", Number, true),
    ("w", Number, true),
    ("h", Number, true),
];

/// Types of panels that are drawn here, too, and the options that each must have.
const PANELS: [(&str, &[Key]); 4] = [
    (
        "timeseries",
        &[("legend", Object, true), ("tooltip", Object, true)],
    ),
    (
        "stat",
        &[
            ("colorMode", Text, true),
            ("graphMode", Text, true),
            ("justifyMode", Text, true),
            ("orientation", Text, true),
            ("percentChangeColorMode", Text, true),
            ("reduceOptions", Object, true),
            ("showPercentChange", Boolean, true),
            ("textMode", Text, true),
            ("wideLayout", Boolean, true),
        ],
    ),
    (
        "state-timeline",
        &[
            ("alignValue", Text, true),
            ("legend", Object, true),
            ("mergeValues", Boolean, true),
            ("rowHeight", Number, true),
            ("showValue", Text, true),
            ("tooltip", Object, true),
        ],
    ),
    (
        "table",
        &[
            ("cellHeight", Text, true),
            ("frameIndex", Number, true),
            ("showHeader", Boolean, true),
        ],
    ),
];

/// What Grafana would not take, or not as it is meant; empty where it is right.
pub fn mistakes(dashboard: &Value) -> Vec<String> {
    let mut check = Check::default();
    check.dashboard(dashboard);
    check.0
}

#[derive(Default)]
struct Check(Vec<String>);

impl Check {
    fn dashboard(&mut self, dashboard: &Value) {
        self.object("dashboard", dashboard, DASHBOARD);
        if dashboard["schemaVersion"] != VERSION {
            self.say("dashboard", "schemaVersion", &format!("is not {VERSION}"));
        }
        let mut variables = BTreeSet::from(["__rate_interval".to_owned()]);
        for variable in items(&dashboard["templating"]["list"]) {
            let name = text(&variable["name"]);
            let place = format!("variable {name}");
            // A text for data sources, an object for Prometheus.
            let mut rest = variable.clone();
            if let Some(map) = rest.as_object_mut()
                && map.remove("query").is_none()
            {
                self.say(&place, "query", "is missing");
            }
            self.object(&place, &rest, VARIABLE);
            if !variables.insert(name) {
                self.say(&place, "name", "is not unique");
            }
        }
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in items(&dashboard["panels"]) {
            let place = format!("panel {}", text(&panel["title"]));
            if !ids.insert(panel["id"].as_u64()) {
                self.say(&place, "id", "is not unique");
            }
            self.grid(&place, &panel["gridPos"], &mut cells);
            if panel["type"] == "row" {
                self.object(&place, panel, ROW);
            } else {
                self.panel(&place, panel, &variables);
            }
        }
    }

    fn grid(&mut self, place: &str, grid: &Value, cells: &mut BTreeSet<(u64, u64)>) {
        self.object(place, grid, GRID);
        let number = |key: &str| grid[key].as_u64().unwrap_or(0);
        let (x, y, w, h) = (number("x"), number("y"), number("w"), number("h"));
        if w == 0 || h == 0 || x + w > COLUMNS {
            self.say(place, "gridPos", "is not on the grid");
        }
        let mut free = true;
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            free &= cells.insert(cell);
        }
        if !free {
            self.say(place, "gridPos", "lies on another panel");
        }
    }

    fn panel(&mut self, place: &str, panel: &Value, variables: &BTreeSet<String>) {
        self.object(place, panel, PANEL);
        match PANELS.iter().find(|(kind, _)| panel["type"] == *kind) {
            Some((_, options)) => {
                self.object(&format!("{place}: options"), &panel["options"], options)
            }
            None => self.say(place, "type", "is none of those that are known"),
        }
        self.object(place, &panel["fieldConfig"], FIELD_CONFIG);
        self.object(place, &panel["fieldConfig"]["defaults"], FIELD);
        let targets = items(&panel["targets"]);
        if targets.is_empty() {
            self.say(place, "targets", "is empty");
        }
        let mut letters = BTreeSet::new();
        for target in targets {
            self.object(place, target, TARGET);
            if !letters.insert(text(&target["refId"])) {
                self.say(place, "refId", "is not unique");
            }
            if target["datasource"] != panel["datasource"] {
                self.say(place, "datasource", "is not that of the query");
            }
            for used in variables_of(&text(&target["expr"])) {
                if !variables.contains(&used) {
                    self.say(
                        place,
                        "expr",
                        &format!("names ${used}, which is no variable"),
                    );
                }
            }
        }
        for rule in items(&panel["fieldConfig"]["overrides"]) {
            let letter = text(&rule["matcher"]["options"]);
            if rule["matcher"]["id"] == "byFrameRefID" && !letters.contains(&letter) {
                self.say(
                    place,
                    "overrides",
                    &format!("names query {letter}, which is not there"),
                );
            }
        }
    }

    fn object(&mut self, place: &str, value: &Value, keys: &[Key]) {
        let none = Map::new();
        let object = value.as_object().unwrap_or(&none);
        for (key, kind, required) in keys {
            match object.get(*key) {
                None if *required => self.say(place, key, "is missing"),
                Some(value) if kind_of(value) != Some(*kind) => {
                    self.say(place, key, &format!("is not of type {kind:?}"));
                }
                _ => {}
            }
        }
        for key in object.keys() {
            if !keys.iter().any(|(known, ..)| known == key) {
                self.say(place, key, "is unknown");
            }
        }
    }

    fn say(&mut self, place: &str, key: &str, what: &str) {
        self.0.push(format!("{place}: {key} {what}"));
    }
}

fn kind_of(value: &Value) -> Option<Kind> {
    match value {
        Value::Null => None,
        Value::Bool(_) => Some(Boolean),
        Value::Number(_) => Some(Number),
        Value::String(_) => Some(Text),
        Value::Array(_) => Some(Array),
        Value::Object(_) => Some(Object),
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Names behind dollar signs.
fn variables_of(expr: &str) -> impl Iterator<Item = String> {
    expr.split('$').skip(1).map(|rest| {
        rest.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Value {
        serde_json::from_str(&crate::dashboard::text().unwrap()).unwrap()
    }

    #[test]
    fn the_shipped_one_is_right() {
        assert_eq!(mistakes(&shipped()), [""; 0]);
    }

    #[test]
    fn mistakes_are_found() {
        #[track_caller]
        fn finds(change: impl FnOnce(&mut Value), expected: &str) {
            let mut dashboard = shipped();
            change(&mut dashboard);
            let found = mistakes(&dashboard);
            assert!(found.iter().any(|one| one.contains(expected)), "{found:?}");
        }
        finds(|d| d["titel"] = "x".into(), "titel is unknown");
        finds(|d| d["time"] = "now".into(), "time is not of type Object");
        finds(|d| d["schemaVersion"] = 1.into(), "schemaVersion is not 39");
        finds(
            |d| d["panels"][0]["id"] = d["panels"][1]["id"].clone(),
            "id is not unique",
        );
        finds(
            |d| d["panels"][0]["gridPos"] = d["panels"][1]["gridPos"].clone(),
            "lies on another",
        );
        finds(
            |d| d["panels"][0]["gridPos"]["w"] = 25.into(),
            "not on the grid",
        );
        finds(|d| d["panels"][0]["type"] = "graph".into(), "type is none");
        finds(
            |d| d["panels"][0]["targets"][0]["expr"] = "up{a=~\"$box\"}".into(),
            "names $box",
        );
        finds(
            |d| {
                d["panels"][0].as_object_mut().unwrap().remove("options");
            },
            "options is missing",
        );
    }
}
