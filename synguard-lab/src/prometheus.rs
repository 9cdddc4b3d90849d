//! A real Prometheus in a namespace, with the repository's own rules, which scrapes the daemon there.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{netns::Netns, process::Process};

/// Its port.
const PORT: u16 = 9090;
/// What an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it scrapes and evaluates here, in place of the shipped example's interval.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// A running Prometheus.
pub struct Prometheus {
    ns: Netns,
    _process: Process,
    _files: tempfile::TempDir,
}

/// A series of an answer. An instant query's has one point.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its labels, the name among them.
    pub labels: BTreeMap<String, String>,
    /// Seconds since the epoch, and values.
    pub points: Vec<(f64, f64)>,
}

/// A rule as Prometheus runs it.
#[derive(Clone, Debug, Deserialize)]
pub struct Rule {
    /// The alert's or the recorded series' name.
    pub name: String,
    /// What it asks.
    pub query: String,
    /// `ok`, `err` or `unknown` (not evaluated yet).
    pub health: String,
    /// What went wrong last.
    #[serde(rename = "lastError", default)]
    pub error: String,
    /// `alerting` or `recording`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `inactive`, `pending` or `firing`; an alert's.
    #[serde(default)]
    pub state: String,
    /// What it fires for.
    #[serde(default)]
    pub alerts: Vec<Alert>,
}

/// Something an alert fires for, or is about to.
#[derive(Clone, Debug, Deserialize)]
pub struct Alert {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its texts, expanded.
    pub annotations: BTreeMap<String, String>,
    /// `pending` or `firing`.
    pub state: String,
}

impl Prometheus {
    /// Starts `binary` with the configuration and the rules in `deploy`, whose intervals become
    /// [`INTERVAL`].
    pub fn start(binary: &Path, ns: &Netns, deploy: &Path) -> Result<Self> {
        let files = tempfile::Builder::new()
            .prefix("synguard-prometheus-")
            .tempdir()
            .context("cannot make a directory for Prometheus")?;
        let read = |name: &str| {
            let path = deploy.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let shipped = read("scrape.yml")?;
        let seconds = INTERVAL.as_secs();
        let config = shipped.replace("_interval: 15s", &format!("_interval: {seconds}s"));
        if config == shipped {
            bail!("scrape.yml has other intervals than 15s");
        }
        let write = |name: &str, text: &str| {
            fs::write(files.path().join(name), text).context("cannot write Prometheus' files")
        };
        write("scrape.yml", &config)?;
        for rules in ["synguard.rules.yml", "synguard.alerts.yml"] {
            write(rules, &read(rules)?)?;
        }
        let mut command = Command::new(binary);
        command
            .arg("--config.file")
            .arg(files.path().join("scrape.yml"))
            .arg("--storage.tsdb.path")
            .arg(files.path().join("data"))
            .arg(format!("--web.listen-address=127.0.0.1:{PORT}"))
            .arg("--log.level=warn")
            // It shares two cores with a flood.
            .env("GOMAXPROCS", "1");
        let mut process = Process::spawn(ns, command)?;
        process.wait_for_port(ns, PORT, PATIENCE)?;
        let prometheus = Self {
            ns: ns.clone(),
            _process: process,
            _files: files,
        };
        let end = Instant::now() + PATIENCE;
        while let Err(error) = prometheus.ask("GET", "/-/ready", "") {
            if Instant::now() > end {
                return Err(error.context("Prometheus does not become ready"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(prometheus)
    }

    /// What a query is answered now.
    pub fn query(&self, query: &str) -> Result<Vec<Series>> {
        self.series("/api/v1/query", &[("query", query)])
    }

    /// What a query is answered at each second of a time.
    pub fn query_range(&self, query: &str, from: f64, to: f64) -> Result<Vec<Series>> {
        let (from, to) = (from.to_string(), to.to_string());
        let step = INTERVAL.as_secs().to_string();
        let form = [
            ("query", query),
            ("start", &from),
            ("end", &to),
            ("step", &step),
        ];
        self.series("/api/v1/query_range", &form)
    }

    /// The values that a label has.
    pub fn label_values(&self, label: &str) -> Result<Vec<String>> {
        self.get(&format!("/api/v1/label/{label}/values"))
    }

    /// All rules, with what became of them.
    pub fn rules(&self) -> Result<Vec<Rule>> {
        #[derive(Deserialize)]
        struct Groups {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<Rule>,
        }
        let answer: Groups = self.get("/api/v1/rules")?;
        Ok(answer
            .groups
            .into_iter()
            .flat_map(|group| group.rules)
            .collect())
    }

    fn series(&self, path: &str, form: &[(&str, &str)]) -> Result<Vec<Series>> {
        #[derive(Deserialize)]
        #[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
        enum Answer {
            Vector(Vec<One>),
            Matrix(Vec<Many>),
            Scalar((f64, String)),
        }
        #[derive(Deserialize)]
        struct One {
            metric: BTreeMap<String, String>,
            value: (f64, String),
        }
        #[derive(Deserialize)]
        struct Many {
            metric: BTreeMap<String, String>,
            values: Vec<(f64, String)>,
        }
        let form: Vec<String> = form
            .iter()
            .map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect();
        let series = |labels, points: Vec<(f64, String)>| -> Result<Series> {
            let parse = |(at, value): (f64, String)| Ok((at, value.parse::<f64>()?));
            let points = points.into_iter().map(parse).collect::<Result<_>>()?;
            Ok(Series { labels, points })
        };
        let answer = self.data("POST", path, &form.join("&"))?;
        match answer {
            Answer::Vector(all) => all
                .into_iter()
                .map(|s| series(s.metric, vec![s.value]))
                .collect(),
            Answer::Matrix(all) => all
                .into_iter()
                .map(|s| series(s.metric, s.values))
                .collect(),
            Answer::Scalar(value) => Ok(vec![series(BTreeMap::new(), vec![value])?]),
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.data("GET", path, "")
    }

    /// The `data` of an answer of its API.
    fn data<T: DeserializeOwned>(&self, method: &str, path: &str, form: &str) -> Result<T> {
        let body = self.ask(method, path, form)?;
        let mut answer: Value =
            serde_json::from_str(&body).with_context(|| format!("{path}: not JSON: {body}"))?;
        serde_json::from_value(answer["data"].take())
            .with_context(|| format!("{path}: not the expected answer: {body}"))
    }

    /// One request. HTTP/1.0, so that the answer ends with the connection and comes in one piece.
    fn ask(&self, method: &str, path: &str, form: &str) -> Result<String> {
        let answer = self.ns.run(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(
                stream,
                "{method} {path} HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                 Content-Length: {}\r\n\r\n{form}",
                form.len()
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("an answer without a head")?;
        let status = head.lines().next().unwrap_or_default();
        if !status.contains(" 200 ") {
            bail!("Prometheus answers {status}: {body}");
        }
        Ok(body.to_owned())
    }
}

/// Now, as Prometheus counts.
pub fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs_f64()
}
