//! Reads the configuration again: whole or not at all, and says what changed.

use std::collections::BTreeMap;

use super::guard::Guard;
use crate::{
    journal::What,
    model::{Config, Service},
};

impl Guard {
    /// Applies the configuration file as it is now. On a mistake everything stays as it was.
    pub fn reload(&mut self) -> Result<String, String> {
        if self.sources.main_path().is_none() {
            return Err(
                "there is no configuration file to reload: start synguard run with --config FILE"
                    .into(),
            );
        }
        let read = self.sources.read_again();
        let applied = read
            .and_then(|sources| Ok((sources.config()?, sources)))
            .map_err(|error| error.to_string())
            .and_then(|(next, sources)| {
                let changes = changes(&self.config, &next);
                let next = self.with_old_sizes(next);
                self.configure(next).map_err(|error| format!("{error:#}"))?;
                self.origins = sources.origins();
                self.sources = sources;
                Ok(changes)
            });
        match &applied {
            Ok(changes) => self.journal.note(What::ConfigReloaded {
                changes: changes.clone(),
            }),
            Err(error) => self.journal.note(What::ConfigRefused {
                error: error.clone(),
            }),
        }
        self.config_error = applied.as_ref().err().cloned();
        applied
    }

    /// `next` with what only a start can change.
    pub(super) fn with_old_sizes(&self, next: Config) -> Config {
        Config {
            half_open_entries: self.config.half_open_entries,
            flow_entries: self.config.flow_entries,
            verified_entries: self.config.verified_entries,
            state: self.config.state.clone(),
            ..next
        }
    }
}

/// What is different, in one line.
fn changes(old: &Config, new: &Config) -> String {
    let by_name = |config: &Config| -> BTreeMap<String, Service> {
        config
            .services
            .iter()
            .map(|service| (service.name.clone(), service.clone()))
            .collect()
    };
    let (before, after) = (by_name(old), by_name(new));
    let mut added = Vec::new();
    let mut changed = Vec::new();
    for (name, service) in &after {
        match before.get(name) {
            None => added.push(name.as_str()),
            Some(before) if before != service => changed.push(name.as_str()),
            Some(_) => {}
        }
    }
    let removed: Vec<&str> = before
        .keys()
        .filter(|name| !after.contains_key(*name))
        .map(String::as_str)
        .collect();
    let later: Vec<&str> = [
        ("interfaces", old.interfaces != new.interfaces),
        ("metrics", old.metrics != new.metrics),
        ("socket", old.socket != new.socket),
        ("state", old.state != new.state),
        ("secret", old.secret != new.secret),
        ("pins", old.pins != new.pins),
        (
            "half_open_entries",
            old.half_open_entries != new.half_open_entries,
        ),
        ("flow_entries", old.flow_entries != new.flow_entries),
        (
            "verified_entries",
            old.verified_entries != new.verified_entries,
        ),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect();

    let mut parts = Vec::new();
    for (what, names) in [
        ("added", added),
        ("changed", changed),
        ("removed", removed),
        ("takes effect at the next start:", later),
    ] {
        if !names.is_empty() {
            parts.push(format!("{what} {}", names.join(", ")));
        }
    }
    let times: Vec<&str> = [
        (
            "flow_idle_timeout",
            old.flow_idle_timeout != new.flow_idle_timeout,
        ),
        (
            "verified_timeout",
            old.verified_timeout != new.verified_timeout,
        ),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect();
    if !times.is_empty() {
        parts.push(format!("{} from now on", times.join(" and ")));
    }
    let [added, removed, changed] = new.sources.listed.changes(&old.sources.listed);
    if added + removed + changed > 0 {
        parts.push(format!(
            "sources: {added} prefixes added, {removed} removed, {changed} changed"
        ));
    }
    for (name, before, after) in [
        ("syn_budget", old.sources.syn_budget, new.sources.syn_budget),
        (
            "answer_budget",
            old.sources.answer_budget,
            new.sources.answer_budget,
        ),
    ] {
        if before != after {
            let off_or = |n: u32| {
                if n == 0 {
                    "off".to_owned()
                } else {
                    n.to_string()
                }
            };
            parts.push(format!("{name} {} from now on", off_or(after)));
        }
    }
    if old.xdp_mode != new.xdp_mode {
        parts.push("xdp_mode holds for interfaces attached from now on".into());
    }
    if parts.is_empty() {
        "nothing changed".into()
    } else {
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::built_in, model::Mode};

    #[test]
    fn a_reload_says_what_changed() {
        let mut old = built_in();
        assert_eq!(changes(&old, &old), "nothing changed");
        let other = |name: &str| Service {
            name: name.into(),
            ..built_in().services.remove(0)
        };
        old.services.extend([other("web"), other("mail")]);
        let mut new = old.clone();
        new.services[1].mode = Mode::Always;
        new.services[2].name = "smtp".into();
        new.interfaces = vec!["eth1".into()];
        new.metrics = None;
        new.flow_entries += 1;
        new.verified_entries += 1;
        new.verified_timeout *= 2;
        assert_eq!(
            changes(&old, &new),
            "added smtp; changed web; removed mail; takes effect at the next start: interfaces, \
             metrics, flow_entries, verified_entries; verified_timeout from now on"
        );
    }
}
