//! `synguard service add`: one more service, with the keys that the configuration file has.

use clap::Args;
use serde_json::{Map, Value, json};

use super::{Daemon, print_done};
use crate::{control::ServiceRequest, model::Mode};

/// Add a service to the running daemon.
///
/// It is checked together with all others as the configuration file would be, and kept in the state
/// directory, so that it is there after a reload and a restart. What is not said comes from
/// [defaults]. `synguard.toml` says what each key means.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synguard service add web --port 80 --port 443
  synguard service add mail --address 192.0.2.25 --port 25,465,587 --mode always
  synguard service add farm --address 198.51.100.0/24 --admission proxy \\
      --server timestamps,sack,window_scale=7,mss=1460")]
pub(super) struct Add {
    /// Its name: letters, digits, `-`, `_` and `.`.
    name: String,

    /// Address or prefix that it covers; may be given more than once [default: the guarded
    /// interfaces' own].
    #[arg(long = "address", value_name = "ADDRESS", value_delimiter = ',')]
    addresses: Vec<String>,

    /// Port or range of ports; may be given more than once [default: all].
    #[arg(long = "port", value_name = "PORT", value_delimiter = ',')]
    ports: Vec<String>,

    /// When it is guarded.
    #[arg(long)]
    mode: Option<Mode>,

    /// What a valid ACK becomes: auto, local, proxy or reset.
    #[arg(long)]
    admission: Option<String>,

    /// What its servers offer: learned, or options such as timestamps,sack,window_scale=7,mss=1460.
    #[arg(long, value_name = "OPTIONS", value_parser = server)]
    server: Option<Value>,

    /// Half-open connections at which it becomes guarded: a number, or auto.
    #[arg(long, value_name = "COUNT")]
    high: Option<String>,

    /// Half-open connections below which it may become calm: a number, or auto.
    #[arg(long, value_name = "COUNT")]
    low: Option<String>,

    /// Seconds that it must have been below that.
    #[arg(long, value_name = "SECONDS")]
    calm_seconds: Option<u64>,

    /// Age at which a half-open connection is given up, such as 64s.
    #[arg(long, value_name = "TIME")]
    half_open_timeout: Option<String>,

    /// Whether the server is told of that, by a RST in the client's name.
    #[arg(long, value_name = "BOOL")]
    release: Option<bool>,

    /// Only until the daemon ends.
    #[arg(long)]
    temporary: bool,

    /// As JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    daemon: Daemon,
}

impl Add {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let request = self.request();
        let done = self
            .daemon
            .talk(|client| async move { Ok(client.add_service(&request).await?) })?;
        print_done(&done, self.json)
    }

    /// What is asked for, with the keys of the file. The daemon says what is wrong with values.
    fn request(&self) -> ServiceRequest {
        let list = |items: &[String], item: fn(&str) -> Value| -> Option<Value> {
            (!items.is_empty()).then(|| items.iter().map(|text| item(text)).collect())
        };
        let ports = match self.ports.as_slice() {
            [all] if all == "all" => Some(json!("all")),
            ports => list(ports, number_or_text),
        };
        let number = |text: &Option<String>| text.as_deref().map(number_or_text);
        let service: Map<String, Value> = [
            ("name", Some(json!(self.name))),
            ("addresses", list(&self.addresses, |text| json!(text))),
            ("ports", ports),
            ("mode", self.mode.map(|mode| json!(mode))),
            ("admission", self.admission.as_ref().map(|text| json!(text))),
            ("server", self.server.clone()),
            ("high", number(&self.high)),
            ("low", number(&self.low)),
            ("calm_seconds", self.calm_seconds.map(|n| json!(n))),
            ("half_open_timeout", number(&self.half_open_timeout)),
            ("release", self.release.map(|release| json!(release))),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect();
        ServiceRequest {
            service,
            temporary: self.temporary,
        }
    }
}

fn number_or_text(text: &str) -> Value {
    text.parse::<u32>()
        .map_or_else(|_| json!(text), |n| json!(n))
}

/// `learned`, or options with or without a value.
fn server(text: &str) -> Result<Value, String> {
    if text == "learned" {
        return Ok(json!(text));
    }
    let option = |option: &str| match option.split_once('=') {
        None if !option.is_empty() => Ok((option.to_owned(), json!(true))),
        Some((key, value)) if !key.is_empty() => Ok((
            key.to_owned(),
            value
                .parse::<bool>()
                .map_or_else(|_| number_or_text(value), |is| json!(is)),
        )),
        _ => Err("give learned, or options such as timestamps,sack,window_scale=7".to_owned()),
    };
    let options: Result<Map<String, Value>, String> = text.split(',').map(option).collect();
    options.map(Value::Object)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        add: Add,
    }

    fn request(arguments: &str) -> ServiceRequest {
        let arguments = std::iter::once("add").chain(arguments.split(' '));
        Line::try_parse_from(arguments).unwrap().add.request()
    }

    #[test]
    fn options_become_keys() {
        let web = request("web");
        assert_eq!(Value::Object(web.service), json!({"name": "web"}));
        assert!(!web.temporary);
        let all = request(
            "w --address 192.0.2.1,2001:db8::/32 --port 80,443 --port 8000-8080 --mode observe \
             --admission proxy --server sack,ecn=false,mss=1400 --high 100 --low auto \
             --calm-seconds 60 --half-open-timeout 30s --temporary",
        );
        assert!(all.temporary);
        assert_eq!(
            Value::Object(all.service),
            json!({
                "name": "w", "addresses": ["192.0.2.1", "2001:db8::/32"],
                "ports": [80, 443, "8000-8080"], "mode": "observe", "admission": "proxy",
                "server": {"sack": true, "ecn": false, "mss": 1400}, "high": 100, "low": "auto",
                "calm_seconds": 60, "half_open_timeout": "30s",
            })
        );
        let rest = request("rest --port all --server learned");
        let expected = json!({"name": "rest", "ports": "all", "server": "learned"});
        assert_eq!(Value::Object(rest.service), expected);
        assert!(server("sack,=7").is_err());
    }
}
