//! From the file's text to a [`Config`]. Mistakes are noted in the report and reading goes on
//! with the built-in value, so that one run finds them all.

use std::{
    collections::{HashMap, HashSet},
    ops::{Range, RangeInclusive},
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    built_in, cover,
    listed::{self, ListFile, SOURCES_KEYS},
    mistake::{Mistake, Report},
    server,
    table::{Key, Located, Section, describe},
    values::{self, AddressItem},
};
use crate::model::{Addresses, Admission, Config, Mode, Server, Service, Watermark};

/// Service numbers that the tables have: 1 to this.
const SERVICES_LIMIT: usize = 1023;

/// What a service says or inherits; the position is none where it is built in.
struct Settings {
    mode: Mode,
    admission: Admission,
    server: Server,
    /// Where `server` is given, unless it is inherited.
    server_span: Option<Range<usize>>,
    high: Threshold,
    low: Threshold,
    calm_after: std::time::Duration,
    half_open_timeout: std::time::Duration,
    release: bool,
}

#[derive(Clone)]
struct Threshold {
    value: Watermark,
    span: Option<Range<usize>>,
    inherited: bool,
}

/// What services inherit, and must fit.
pub(super) struct Defaults {
    settings: Settings,
    /// Of the half-open table.
    entries: u32,
}

/// A service, and the positions that mistakes between it and others are reported at.
pub(super) struct Found {
    pub(super) service: Service,
    /// Position of its report.
    file: usize,
    /// Where it is called what it is called, if that is right.
    name: Option<Range<usize>>,
    place: Range<usize>,
    prefixes: HashMap<IpNet, Range<usize>>,
}

/// The configuration in `text` without its services, what services inherit, the services, and what is
/// wrong in files of prefixes; meaningless unless the report is clean afterwards.
pub(super) fn config(
    (path, text): (&Path, &str),
    files: &[Arc<ListFile>],
    report: &mut Report<'_>,
) -> (Config, Defaults, Vec<Found>, Vec<Mistake>) {
    let mut config = built_in();
    let mut defaults = Defaults {
        settings: Settings::built_in(),
        entries: config.half_open_entries,
    };
    let Some(document) = parse(text, report) else {
        return (config, defaults, Vec::new(), Vec::new());
    };
    let root = Section::open(
        document.get_ref(),
        "the file",
        &["daemon", "sources", "defaults", "service"],
        report,
    );

    let daemon = subsection(&root, "daemon", values::DAEMON_KEYS, report);
    config.interfaces = interfaces(&daemon, report);
    if let Some((metrics, _)) = daemon.get(&values::METRICS, report) {
        config.metrics = metrics.into();
    }
    if let Some((pins, _)) = daemon.get(&values::PINS, report) {
        config.pins = pins.into();
    }
    set(&mut config.socket, &daemon, &values::SOCKET, report);
    set(&mut config.secret, &daemon, &values::SECRET, report);
    if let Some((state, _)) = daemon.get(&values::STATE, report) {
        config.state = state.into();
    }
    set(&mut config.xdp_mode, &daemon, &values::XDP_MODE, report);
    for (entries, key) in [
        (&mut config.half_open_entries, &values::HALF_OPEN_ENTRIES),
        (&mut config.flow_entries, &values::FLOW_ENTRIES),
        (&mut config.verified_entries, &values::VERIFIED_ENTRIES),
    ] {
        set(entries, &daemon, key, report);
    }
    for (time, key) in [
        (&mut config.flow_idle_timeout, &values::FLOW_IDLE_TIMEOUT),
        (&mut config.verified_timeout, &values::VERIFIED_TIMEOUT),
    ] {
        set(time, &daemon, key, report);
    }

    set(&mut config.syn_cache, &daemon, &values::SYN_CACHE, report);

    let section = subsection(&root, "sources", SOURCES_KEYS, report);
    let (sources, mistakes) = listed::read(&section, (path, text), files, report);
    config.sources = sources;

    let section = subsection(&root, "defaults", values::DEFAULTS_KEYS, report);
    let mut settings = Settings::built_in().overlaid(&section, report);
    settings.high.inherited = true;
    settings.low.inherited = true;
    defaults = Defaults {
        settings,
        entries: config.half_open_entries,
    };
    let built_in = std::mem::take(&mut config.services);
    let found = match root.raw("service") {
        None => {
            defaults.settings.check(defaults.entries, &(0..0), report);
            let inherits = |service| Found {
                service: defaults.settings.service(service),
                file: 0,
                name: None,
                place: 0..0,
                prefixes: HashMap::new(),
            };
            built_in.into_iter().map(inherits).collect()
        }
        Some(value) => services(value, 0, &defaults, report),
    };
    (config, defaults, found, mistakes)
}

/// The services in `text`, a file of nothing else, which has the report `file`.
pub(super) fn addition(
    file: usize,
    text: &str,
    defaults: &Defaults,
    report: &mut Report<'_>,
) -> Vec<Found> {
    let Some(document) = parse(text, report) else {
        return Vec::new();
    };
    let root = Section::open(
        document.get_ref(),
        "a file of services",
        &["service"],
        report,
    );
    match root.raw("service") {
        Some(value) => services(value, file, defaults, report),
        None if report.is_clean() => {
            report.add(
                &(0..0),
                "there is no [[service]]; give one, or remove the file",
            );
            Vec::new()
        }
        None => Vec::new(),
    }
}

/// Names of the services in `text`, with their lines, from 1.
pub(super) fn names(text: &str) -> Vec<(String, usize)> {
    let (document, _) = DeTable::parse_recoverable(text);
    let services = document.get_ref().get("service");
    let services = services.and_then(|value| value.get_ref().as_array());
    let name = |item: &Spanned<DeValue<'_>>| {
        let name = item.get_ref().as_table()?.get(values::NAME.name)?;
        let before = text.get(..name.span().start)?;
        let line = before.matches('\n').count() + 1;
        Some((name.get_ref().as_str()?.to_owned(), line))
    };
    services
        .into_iter()
        .flat_map(|items| items.iter().filter_map(name))
        .collect()
}

/// The document, if its syntax is right.
fn parse<'a>(text: &'a str, report: &mut Report<'_>) -> Option<Spanned<DeTable<'a>>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let right = "see https://toml.io for the syntax";
        report.add(
            &error.span().unwrap_or(0..0),
            format!("{}; {right}", error.message()),
        );
    }
    report.is_clean().then_some(document)
}

fn set<T>(target: &mut T, section: &Section<'_>, key: &Key<T>, report: &mut Report<'_>) {
    if let Some((value, _)) = section.get(key, report) {
        *target = value;
    }
}

fn subsection<'a>(
    root: &Section<'a>,
    name: &str,
    known: &[&str],
    report: &mut Report<'_>,
) -> Section<'a> {
    match root.raw(name) {
        None => Section::absent(),
        Some(value) => match value.get_ref() {
            DeValue::Table(table) => Section::open(table, &format!("[{name}]"), known, report),
            other => {
                let is = describe(other);
                report.add(
                    &value.span(),
                    format!("`{name}` is {is}; give a table, [{name}]"),
                );
                Section::absent()
            }
        },
    }
}

fn interfaces(daemon: &Section<'_>, report: &mut Report<'_>) -> Vec<String> {
    let mut names = Vec::new();
    let Some(value) = daemon.raw(values::INTERFACES) else {
        return names;
    };
    let Some(items) = value.get_ref().as_array() else {
        let is = describe(value.get_ref());
        report.add(
            &value.span(),
            format!("`interfaces` is {is}; give an array of names such as [\"eth0\"]"),
        );
        return names;
    };
    for item in items {
        match values::interface_item(item.get_ref()) {
            Ok(name) if names.contains(&name) => {
                report.add(&item.span(), format!("{name} is there twice; remove one"));
            }
            Ok(name) => names.push(name),
            Err(text) => report.add(&item.span(), text),
        }
    }
    names
}

fn services(
    value: &Spanned<DeValue<'_>>,
    file: usize,
    defaults: &Defaults,
    report: &mut Report<'_>,
) -> Vec<Found> {
    let Some(array) = value.get_ref().as_array() else {
        let is = describe(value.get_ref());
        report.add(
            &value.span(),
            format!("`service` is {is}; give a table per service, [[service]]"),
        );
        return Vec::new();
    };
    let mut services: Vec<Found> = Vec::new();
    for (i, item) in array.iter().enumerate() {
        let Some(table) = item.get_ref().as_table() else {
            let is = describe(item.get_ref());
            report.add(
                &item.span(),
                format!("a service is {is}; give a table, [[service]]"),
            );
            continue;
        };
        let section = Section::open(table, "[[service]]", values::SERVICE_KEYS, report);
        let name = section.get(&values::NAME, report);
        if section.raw(values::NAME.name).is_none() {
            report.add(
                &item.span(),
                "[[service]] has no `name`; give it one, such as \"web\"",
            );
        }
        let settings = defaults.settings.overlaid(&section, report);
        settings.check(defaults.entries, &item.span(), report);
        let (addresses, prefixes) = addresses(&section, report);
        let (name, name_span) = name.unzip();
        let service = settings.service(Service {
            // A service without a valid name is a mistake already; mistakes between it and others
            // need one all the same.
            name: name.unwrap_or_else(|| format!("#{}", i + 1)),
            addresses,
            ports: ports(&section, report),
            ..template()
        });
        services.push(Found {
            service,
            file,
            name: name_span,
            place: item.span(),
            prefixes,
        });
    }
    if array.is_empty() {
        report.add(
            &value.span(),
            "`service` is an empty array; leave it out for the built-in service",
        );
    }
    services
}

/// Notes what does not fit together, at the service that is later. Each file has its report.
pub(super) fn check_together(found: &[Found], reports: &mut [Report<'_>]) {
    let mut note = |at: &Found, span: &Range<usize>, text: String| {
        if let Some(report) = reports.get_mut(at.file) {
            report.add(span, text);
        }
    };
    if let Some(beyond) = found.get(SERVICES_LIMIT) {
        let text = format!(
            "{} services are too many; give at most {SERVICES_LIMIT}",
            found.len()
        );
        note(beyond, &beyond.place, text);
    }
    let mut names: HashSet<&str> = HashSet::new();
    for each in found {
        let name = each.service.name.as_str();
        if !names.insert(name)
            && let Some(span) = &each.name
        {
            let text = format!("another service is called `{name}`; give each its own name");
            note(each, span, text);
        }
    }
    let services: Vec<Service> = found.iter().map(|each| each.service.clone()).collect();
    for conflict in cover::conflicts(&services) {
        let (first, second) = (&found[conflict.first], &found[conflict.second]);
        let span = conflict
            .prefix
            .and_then(|prefix| second.prefixes.get(&prefix));
        note(
            second,
            span.unwrap_or(&second.place),
            format!(
                "services `{}` and `{}` both cover {conflict}; give one of them other ports or a \
                 longer prefix",
                first.service.name, second.service.name
            ),
        );
    }
}

/// What a service is before its own keys are read.
pub(super) fn template() -> Service {
    Service {
        name: String::new(),
        addresses: Addresses::Interface,
        ports: None,
        mode: Mode::Adaptive,
        admission: Admission::Auto,
        server: Server::Learned,
        high: Watermark::Auto,
        low: Watermark::Auto,
        calm_after: super::DEFAULT_CALM_AFTER,
        half_open_timeout: super::DEFAULT_HALF_OPEN_TIMEOUT,
        release: true,
    }
}

fn addresses(
    section: &Section<'_>,
    report: &mut Report<'_>,
) -> (Addresses, HashMap<IpNet, Range<usize>>) {
    const RIGHT: &str = "give [\"interface\"] or an array of addresses and prefixes";
    let mut prefixes = Vec::new();
    let mut places = HashMap::new();
    let mut interface: Option<Range<usize>> = None;
    let nothing = (Addresses::Interface, HashMap::new());
    let Some(value) = section.raw(values::ADDRESSES) else {
        return nothing;
    };
    let items = match value.get_ref() {
        DeValue::Array(items) if !items.is_empty() => items,
        other => {
            report.add(
                &value.span(),
                format!("`addresses` is {}; {RIGHT}", describe(other)),
            );
            return (Addresses::Prefixes(Vec::new()), places);
        }
    };
    for item in items {
        match values::address_item(item.get_ref()) {
            Err(text) => report.add(&item.span(), text),
            Ok(AddressItem::Interface) => {
                interface = Some(item.span());
            }
            Ok(AddressItem::Prefix(prefix)) => {
                if places.insert(prefix, item.span()).is_some() {
                    let text = format!("{} is there twice; remove one", cover::show(&prefix));
                    report.add(&item.span(), text);
                } else {
                    prefixes.push(prefix);
                }
            }
        }
    }
    match interface {
        Some(span) if items.len() > 1 => {
            report.add(
                &span,
                "\"interface\" does not mix with addresses; give them to a [[service]] of their own",
            );
            (Addresses::Prefixes(prefixes), places)
        }
        Some(_) => nothing,
        None => (Addresses::Prefixes(prefixes), places),
    }
}

/// Sorted, and ranges that touch are one.
fn ports(section: &Section<'_>, report: &mut Report<'_>) -> Option<Vec<RangeInclusive<u16>>> {
    let value = section.raw(values::PORTS)?;
    let items = match value.get_ref() {
        DeValue::String(s) if s == "all" => return None,
        DeValue::Array(items) if !items.is_empty() => items,
        other => {
            let is = describe(other);
            report.add(
                &value.span(),
                format!("`ports` is {is}; give \"all\" or an array such as [443, \"8000-8080\"]"),
            );
            return Some(Vec::new());
        }
    };
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for item in items {
        match values::port_item(item.get_ref()) {
            Ok(range) => ranges.push(range),
            Err(text) => report.add(&item.span(), text),
        }
    }
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*range.end().max(last.end());
            }
            _ => merged.push(range),
        }
    }
    Some(merged)
}

impl Threshold {
    fn overlaid(&self, read: Option<Located<Watermark>>) -> Self {
        match read {
            Some((value, span)) => Self {
                value,
                span: Some(span),
                inherited: false,
            },
            None => self.clone(),
        }
    }

    /// The value as messages show it, with where it comes from.
    fn describe(&self, name: &str) -> String {
        let value = match self.value {
            Watermark::Auto => "\"auto\"".into(),
            Watermark::Fixed(n) => n.to_string(),
        };
        let from = if self.inherited && self.span.is_some() {
            " (from [defaults])"
        } else {
            ""
        };
        format!("`{name}` = {value}{from}")
    }
}

impl Settings {
    fn built_in() -> Self {
        let template = template();
        let threshold = |value| Threshold {
            value,
            span: None,
            inherited: true,
        };
        Self {
            mode: template.mode,
            admission: template.admission,
            server: template.server,
            server_span: None,
            high: threshold(template.high),
            low: threshold(template.low),
            calm_after: template.calm_after,
            half_open_timeout: template.half_open_timeout,
            release: template.release,
        }
    }

    /// These settings where `section` says nothing else.
    fn overlaid(&self, section: &Section<'_>, report: &mut Report<'_>) -> Self {
        let mut new = Self {
            mode: self.mode,
            admission: self.admission,
            server: self.server,
            server_span: None,
            high: self.high.overlaid(section.get(&values::HIGH, report)),
            low: self.low.overlaid(section.get(&values::LOW, report)),
            calm_after: self.calm_after,
            half_open_timeout: self.half_open_timeout,
            release: self.release,
        };
        set(&mut new.mode, section, &values::MODE, report);
        set(&mut new.admission, section, &values::ADMISSION, report);
        if let Some((server, span)) = server::read(section, report) {
            new.server = server;
            new.server_span = Some(span);
        }
        set(&mut new.calm_after, section, &values::CALM_AFTER, report);
        set(
            &mut new.half_open_timeout,
            section,
            &values::HALF_OPEN_TIMEOUT,
            report,
        );
        set(&mut new.release, section, &values::RELEASE, report);
        new
    }

    /// What does not fit together: a server's options and the admission, the thresholds and the
    /// table. Reported where this service says something about them, else in [defaults].
    fn check(&self, entries: u32, service: &Range<usize>, report: &mut Report<'_>) {
        if let Some(span) = &self.server_span {
            server::check(self.server, self.admission, span, report);
        }
        let (high, low) = (&self.high, &self.low);
        let own = [low, high].into_iter().find(|t| !t.inherited);
        let any = own.or_else(|| [low, high].into_iter().find(|t| t.span.is_some()));
        let span = any.and_then(|t| t.span.as_ref()).unwrap_or(service);
        match (high.value, low.value) {
            (Watermark::Auto, Watermark::Fixed(_)) => report.add(
                span,
                format!(
                    "{} stands beside {}; give both as numbers, or leave `low` to \"auto\"",
                    low.describe("low"),
                    high.describe("high")
                ),
            ),
            (Watermark::Fixed(high_value), Watermark::Fixed(low_value))
                if low_value >= high_value =>
            {
                report.add(
                    span,
                    format!(
                        "{} is not below {}; give a lower `low` or a higher `high`",
                        low.describe("low"),
                        high.describe("high")
                    ),
                );
            }
            _ => {}
        }
        if let Watermark::Fixed(n) = high.value
            && n > entries
        {
            let span = high.span.as_ref().unwrap_or(service);
            report.add(
                span,
                format!(
                    "{} is more than the half-open table holds; give at most {entries}, or a \
                     larger `half_open_entries` in [daemon]",
                    high.describe("high")
                ),
            );
        }
    }

    fn service(&self, named: Service) -> Service {
        Service {
            mode: self.mode,
            admission: self.admission,
            server: self.server,
            high: self.high.value,
            low: self.low.value,
            calm_after: self.calm_after,
            half_open_timeout: self.half_open_timeout,
            release: self.release,
            ..named
        }
    }
}
