//! `synguard top` while one of three services is flooded.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use ratatui::{buffer::Buffer, layout::Rect};
use synguard::{
    control::client::Client,
    top::{
        look::Look,
        model::Model,
        ui::Ui,
        view::{self, Scene},
    },
};

use super::svg;
use crate::{
    edge::{Edge, EdgeOptions, SERVER_V4},
    flood::{FloodSpec, Kind, Rate},
    guard::Guard,
    http::{HttpServer, ServerOptions},
    load::{LoadClient, LoadOptions, Pattern},
};

/// Services: name, port, legitimate connections per second.
const SERVICES: [(&str, u16, u32); 3] = [("web", 80, 400), ("api", 8080, 60), ("mail", 25, 5)];
/// What one of them has to stand: seconds and SYNs per second, one after the other.
const FLOODS: &[(u64, u64)] = &[(8, 0), (4, 40_000), (4, 90_000), (8, 150_000)];
const BRIEFLY: &[(u64, u64)] = &[(2, 20_000)];
const DELAY: Duration = Duration::from_secs(1);

/// The picture, as SVG.
pub(super) fn picture(synguard: &Path, brief: bool) -> Result<String> {
    let floods = if brief { BRIEFLY } else { FLOODS };
    let edge = Edge::new(EdgeOptions::default())?;
    let mut config = String::new();
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    let all: u64 = floods.iter().map(|(seconds, _)| seconds).sum();
    for (name, port, connections) in SERVICES {
        let options = ServerOptions {
            port,
            ..ServerOptions::default()
        };
        servers.push(HttpServer::start(&edge.server, options)?);
        config += &format!("[[service]]\nname = \"{name}\"\nports = [{port}]\n\n");
        clients.push(LoadClient::start(
            &edge.client,
            LoadOptions {
                sources: edge.client_sources(false),
                duration: Duration::from_secs(2 * all + 30),
                ..LoadOptions::new((SERVER_V4, port).into(), Pattern::Open(connections))
            },
        )?);
    }
    let guard = Guard::start(synguard, &edge.server_end, Some(&config))?;
    // Not before: attaching starts the interface's threads anew.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let client = Client::new(&guard.socket());
    let ask = || -> Result<_> {
        let asked = Instant::now();
        let snapshot = runtime
            .block_on(client.status())
            .context("the daemon does not answer")?;
        Ok((snapshot, asked + asked.elapsed() / 2))
    };

    let (first, at) = ask()?;
    let mut model = Model::new(first, at);
    for &(seconds, rate) in floods {
        let flood = match rate {
            0 => None,
            rate => Some(edge.flood(FloodSpec {
                duration: Duration::from_secs(2 * seconds),
                ..FloodSpec::new(
                    Kind::Syn,
                    Rate::Pps(rate),
                    (SERVER_V4, SERVICES[0].1).into(),
                )
            })?),
        };
        for _ in 0..seconds {
            let next = model.at() + DELAY;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let (snapshot, at) = ask()?;
            model.update(snapshot, at);
        }
        if let Some(flood) = flood {
            flood.stop()?;
        }
    }
    let guarded = model
        .services()
        .any(|(status, _)| status.state == "guarded");
    guard.stop()?;
    if !guarded {
        bail!("the flood did not make the service guarded: nothing to show");
    }
    Ok(svg::render(
        &screen(&model)?,
        "synguard top while a flood lasts",
    ))
}

/// What a terminal of 80 columns and 24 lines shows.
fn screen(model: &Model) -> Result<Buffer> {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is not set")?
        .as_secs();
    let scene = Scene {
        model,
        wall,
        taken: wall,
        silence: None,
        delay: DELAY,
        look: Look {
            unicode: true,
            colours: true,
        },
        paused: false,
    };
    let mut ui = Ui {
        selected: Some(SERVICES[0].0.to_owned()),
        ..Ui::default()
    };
    let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
    let area = buffer.area;
    view::draw(&scene, &mut ui, area, &mut buffer);
    Ok(buffer)
}
