//! Watermarks that the daemon chooses: a flood so slow that only its half-open connections show it, and a
//! crowd that is none.

use std::time::{Duration, Instant};

use synguard_lab::{
    client::{self, ConnectOptions},
    flood::{FloodSpec, Kind as Flood, Rate},
    http::{HttpServer, ServerOptions},
    load::{LoadClient, LoadOptions, Pattern},
    skip_unless_root,
    topology::{Forwarding, ForwardingOptions},
};

use crate::{
    client::HTTP,
    guard::{PATIENCE, eventually},
    halfopen::syn_received,
    routed,
};

const SECOND: Duration = Duration::from_secs(1);

/// A server behind an edge that routes, with a listen queue of this length and without SYN cookies of its
/// own: one whose queue is full answers nobody.
fn site(backlog: u32) -> (Forwarding, HttpServer) {
    let topology = Forwarding::routed(ForwardingOptions::default()).unwrap();
    for (name, value) in [("tcp_syncookies", 0), ("tcp_max_syn_backlog", backlog)] {
        let name = format!("net.ipv4.{name}");
        topology.server.set_sysctl(&name, value).unwrap();
    }
    let options = ServerOptions {
        port: topology.server_port(HTTP),
        backlog: backlog as i32,
        ..ServerOptions::default()
    };
    let server = HttpServer::start(&topology.server, options).unwrap();
    (topology, server)
}

#[test]
fn a_slow_flood_does_not_fill_the_backlog() {
    if !skip_unless_root("a_slow_flood_does_not_fill_the_backlog") {
        return;
    }
    const BACKLOG: u32 = 128;
    let (topology, _server) = site(BACKLOG);
    let guard = routed::guard(&topology);
    let target = topology.dial(false, HTTP);
    let spec = FloodSpec {
        duration: 8 * SECOND,
        ..FloodSpec::new(Flood::Syn, Rate::Pps(50), target)
    };
    let flood = topology.flood(spec).unwrap();
    let begin = Instant::now();
    eventually("it is guarded", || {
        (guard.service().state == "guarded").then_some(())
    });
    let half_open = syn_received(&topology.server);
    println!("guarded after {:?}, {half_open} half-open", begin.elapsed());
    assert!((50..90).contains(&half_open), "{half_open}");

    // A new client gets in, now and when the flood would have filled the queue twice over.
    for at in [0, 6] {
        std::thread::sleep((begin + at * SECOND).saturating_duration_since(Instant::now()));
        let options = ConnectOptions {
            timeout: PATIENCE,
            ..ConnectOptions::default()
        };
        let asked = Instant::now();
        let stream = client::connect(&topology.client, target, &options).unwrap();
        assert_eq!(client::get(&stream, "/").unwrap().status, 200);
        assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
        assert!(syn_received(&topology.server) < 90);
    }
    flood.wait().unwrap();
    assert_eq!(guard.service().guarded_total, 1);
}

#[test]
fn a_crowd_of_real_clients_is_let_pass() {
    if !skip_unless_root("a_crowd_of_real_clients_is_let_pass") {
        return;
    }
    let (topology, _server) = site(4096);
    let guard = routed::guard(&topology);
    assert_eq!(guard.service().high, 64);
    let options = LoadOptions {
        duration: 4 * SECOND,
        sources: topology.client_sources(false),
        ..LoadOptions::new(topology.dial(false, HTTP), Pattern::Open(800))
    };
    let report = LoadClient::start(&topology.client, options)
        .unwrap()
        .wait()
        .unwrap();
    assert!(report.ok > 2500, "{report:?}");
    assert_eq!(report.failed(), 0, "{report:?}");
    let service = guard.service();
    assert_eq!((service.state.as_str(), service.guarded_total), ("calm", 0));
    // It has room for more of them, and says why.
    assert_eq!(service.high, 256, "{service:?}");
    let told = guard.told(&["events", "--json", "--kind", "threshold_changed"]);
    assert!((1..=3).contains(&told.lines().count()), "{told}");
    assert!(told.contains("high 256, low 128"), "{told}");
}
