//! The two text formats: OpenMetrics for scrapers that ask for it, the Prometheus text format
//! 0.0.4 for the others (`curl`, `promtool check metrics`, older agents).
//!
//! The library writes OpenMetrics. The Prometheus format differs in a few comment lines, where a
//! family is named like its samples and types are fewer; the samples are the same.

use std::fmt::{self, Write};

use prometheus_client::{encoding::text, registry::Registry};

use super::{families::Families, process::OwnProcess};
use crate::model::Snapshot;

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus text format 0.0.4.
    Prometheus,
}

impl Format {
    /// The format for a scraper with this `Accept` header.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// The `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics of `snapshot`, and of this process.
pub fn render(snapshot: Snapshot, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(snapshot)));
    registry.register_collector(Box::new(OwnProcess));
    let mut open_metrics = String::new();
    text::encode(&mut open_metrics, &registry)?;
    match format {
        Format::OpenMetrics => Ok(open_metrics),
        Format::Prometheus => prometheus_text(&open_metrics),
    }
}

fn prometheus_text(open_metrics: &str) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(comment) = line.strip_prefix("# HELP ") {
            // Written with the type, which decides the name.
            help = comment.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some(comment) = line.strip_prefix("# TYPE ") {
            let (name, kind) = comment.split_once(' ').unwrap_or((comment, "unknown"));
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                _ => ("", kind),
            };
            writeln!(text, "# HELP {name}{suffix} {help}")?;
            writeln!(text, "# TYPE {name}{suffix} {kind}")?;
        } else if !line.starts_with('#') {
            writeln!(text, "{line}")?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_text_names_families_like_their_samples() {
        let open_metrics = "# HELP a Some a.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"#\"} 1\n\
                            # HELP b Some b.\n# TYPE b info\nb_info 1\n\
                            # HELP c Some c.\n# TYPE c gauge\nc 2\n# EOF\n";
        let expected = "# HELP a_total Some a.\n# TYPE a_total counter\na_total{x=\"#\"} 1\n\
                        # HELP b_info Some b.\n# TYPE b_info gauge\nb_info 1\n\
                        # HELP c Some c.\n# TYPE c gauge\nc 2\n";
        assert_eq!(prometheus_text(open_metrics).unwrap(), expected);
    }

    #[test]
    fn the_scraper_chooses_the_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::accepted(None), Format::Prometheus);
    }
}
