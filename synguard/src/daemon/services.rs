//! Services that come and go by command, while the daemon runs. They are kept in files of the
//! state directory, which are read beside the configuration file.

use serde_json::{Map, Value, json};

use super::{guard::Guard, kept::Change};
use crate::{
    config::{Addition, Origin, Sources},
    control::ServiceRequest,
    dataplane::error::NearNames,
    model::Config,
};

impl Guard {
    /// Adds a service, whole or not at all; says what it covers.
    pub fn add_service(&mut self, request: &ServiceRequest) -> Result<String, String> {
        let name = match request.service.get("name") {
            Some(Value::String(name)) => name.as_str(),
            _ => return Err("a service has no name; give it one, such as \"web\"".into()),
        };
        if self.config.services.iter().any(|each| each.name == name) {
            return Err(format!(
                "there is a service {name} already: `synguard service show {name}` shows it, \
                 `synguard mode {name} MODE` changes its mode"
            ));
        }
        let directory = match self.sources.directory() {
            _ if request.temporary => None,
            Some(directory) => Some(directory),
            None => {
                return Err(format!(
                    "the daemon keeps nothing (`state` is \"off\"): add {name} with --temporary, or \
                     put it into the configuration file"
                ));
            }
        };
        // Only a right name becomes one of a file: it is checked first.
        let file = format!("{name}.toml");
        let addition = Addition {
            path: directory
                .as_ref()
                .map_or_else(|| name.into(), |at| at.join(&file)),
            text: text(&request.service).map_err(|error| crate::one_line(&error.to_string()))?,
            temporary: request.temporary,
        };
        let sources = self.sources.with(addition.clone());
        let config = sources.config().map_err(|error| {
            let mistakes: Vec<_> = error.mistakes().collect();
            match mistakes.as_slice() {
                [] => error.to_string(),
                [first, others @ ..] => {
                    let more = match others.len() {
                        0 => String::new(),
                        n => format!(" (and {n} more)"),
                    };
                    format!("{}{more}", first.about(&addition.path))
                }
            }
        })?;
        let files = match &directory {
            None => Ok(Change::None),
            Some(directory) => Change::add(directory, &addition),
        };
        files
            .and_then(|files| self.change(sources, config, files))
            .map_err(|error| format!("cannot add service {name}: {error:#}"))?;
        let covers = self
            .services
            .iter()
            .find(|running| running.service.name == name)
            .map(|running| (running.covers().join(" "), running.service.mode));
        Ok(match covers {
            Some((covers, mode)) => format!("service {name} is added, mode {mode}: {covers}"),
            None => format!("service {name} is added"),
        })
    }

    /// Removes a service that was added by command.
    pub fn remove_service(&mut self, name: &str) -> Result<String, String> {
        let known = self.config.services.iter().map(|each| each.name.clone());
        let known: Vec<String> = known.collect();
        if !known.iter().any(|each| each == name) {
            return Err(format!("no service {name}{}", NearNames::new(name, known)));
        }
        match self.origins.get(name) {
            None | Some(Origin::BuiltIn) => {
                return Err(format!(
                    "service {name} is built in: a configuration file with services of its own \
                     takes its place (synguard run --config FILE)"
                ));
            }
            Some(origin @ Origin::Main { .. }) => {
                return Err(format!(
                    "service {name} stands in {origin}: take it out there, then `synguard reload`"
                ));
            }
            Some(Origin::Added { path, shared: true }) => {
                return Err(format!(
                    "service {name} stands in {} beside others: take it out there, then `synguard \
                     reload`",
                    path.display()
                ));
            }
            Some(Origin::Added { shared: false, .. } | Origin::Temporary) => {}
        }
        let Some(addition) = self.sources.addition_of(name).cloned() else {
            return Err(format!("service {name} stands nowhere: `synguard reload`"));
        };
        let sources = self.sources.without(&addition.path);
        let config = sources.config().map_err(|error| error.to_string())?;
        let files = match addition.temporary {
            true => Ok(Change::None),
            false => Change::remove(&addition.path),
        };
        files
            .and_then(|files| self.change(sources, config, files))
            .map_err(|error| format!("cannot remove service {name}: {error:#}"))?;
        Ok(format!("service {name} is removed"))
    }

    /// Applies a configuration whose files are changed already. Modes that were changed by command
    /// stay.
    fn change(&mut self, sources: Sources, config: Config, files: Change) -> anyhow::Result<()> {
        let config = self.with_old_sizes(config);
        files.settle(self.configure_with(config, true))?;
        self.origins = sources.origins();
        self.sources = sources;
        Ok(())
    }
}

/// The service as a file of its own.
fn text(service: &Map<String, Value>) -> Result<String, toml::ser::Error> {
    let table = toml::to_string(&json!({ "service": [service] }))?;
    Ok(format!(
        "# Written by `synguard service add`; `synguard service remove` removes it.\n{table}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn what_the_command_says_is_written_as_the_file_has_it() {
        let service = json!({
            "name": "web",
            "addresses": ["192.0.2.1", "2001:db8::/32"],
            "ports": [443, "8000-8080"],
            "high": 100,
            "low": 50,
            "admission": "proxy",
            "server": {"sack": true, "mss": 1400},
        });
        let text = text(service.as_object().unwrap()).unwrap();
        let sources = Sources::main_alone(None, &Overrides::default()).unwrap();
        let web = Addition {
            path: "web".into(),
            text: text.clone(),
            temporary: true,
        };
        let config = sources.with(web).config().unwrap();
        let web = &config.services[1];
        assert_eq!(web.ports, Some(vec![443..=443, 8000..=8080]), "{text}");
        let crate::model::Server::Fixed(offer) = web.server else {
            panic!("{text}");
        };
        assert_eq!(
            (offer.sack, offer.ecn, offer.mss),
            (true, false, Some(1400))
        );
        assert!(text.starts_with("# Written by"));
    }
}
