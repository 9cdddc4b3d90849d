//! Where proxied connections are tried: servers behind an edge of each shape, and on the edge itself,
//! with a daemon that guards them by admission `proxy`.

use std::{
    net::{SocketAddr, TcpStream},
    sync::Mutex,
    time::Duration,
};

use synguard_lab::{
    client::{self, ConnectOptions},
    edge::{Edge, EdgeOptions, SERVER_V4, SERVER_V6},
    frame::Frame,
    http::{HttpServer, ServerOptions},
    link::End,
    netns::Netns,
    skip_unless_root,
    topology::{Forwarding, ForwardingOptions, Shape, skip_unless_nft},
    wire::Wire,
};

use crate::{
    client::{BANNER, ECHO, HTTP},
    guard::{Guard, PATIENCE},
};

/// Well below the 200 ms that a lost segment costs. Without the guard it takes less than one.
pub const PROMPT: Duration = Duration::from_millis(100);

/// A port that nobody has, for tests with servers of their own.
pub const SPARE: u16 = 9000;

/// Where the servers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind an edge of this shape.
    Behind(Shape),
    /// On the edge.
    OnEdge,
}

impl Place {
    /// Each of them whose answers pass the edge.
    pub const ALL: [Self; 4] = [
        Self::Behind(Shape::Routed),
        Self::Behind(Shape::Bridged),
        Self::Behind(Shape::Dnat),
        Self::OnEdge,
    ];

    /// Whether a test can be run here; says on standard output why not.
    pub fn is_possible(self, what: &str) -> bool {
        skip_unless_root(what) && (self != Self::Behind(Shape::Dnat) || skip_unless_nft(what))
    }
}

/// Runs a test at each of these places where it is possible, guarded by a proxy that has seen what
/// the server offers.
pub fn at_each(places: &[Place], what: &str, test: impl Fn(Place, &Site, &Guard)) {
    for &place in places {
        if place.is_possible(what) {
            let site = Site::plain(place);
            let _server = site.serve();
            let guard = site.guard_knowingly();
            test(place, &site, &guard);
        }
    }
}

/// A place, built.
pub enum Site {
    Behind(Box<Forwarding>),
    OnEdge(Box<Edge>),
}

impl Site {
    /// Builds a place; of the options only the MTU matters on the edge itself, and the stacks.
    pub fn new(place: Place, options: ForwardingOptions) -> Self {
        match place {
            Place::Behind(shape) => {
                let options = ForwardingOptions {
                    ports: vec![HTTP, ECHO, BANNER, SPARE],
                    ..options
                };
                Self::Behind(Box::new(Forwarding::new(shape, options).unwrap()))
            }
            Place::OnEdge => {
                let edge = Edge::new(EdgeOptions {
                    mtu: options.outer_mtu,
                    ..EdgeOptions::default()
                });
                let edge = Box::new(edge.unwrap());
                options.client_stack.apply(&edge.client).unwrap();
                options.server_stack.apply(&edge.server).unwrap();
                Self::OnEdge(edge)
            }
        }
    }

    /// As most tests want it.
    pub fn plain(place: Place) -> Self {
        Self::new(place, ForwardingOptions::default())
    }

    pub fn client(&self) -> &Netns {
        match self {
            Self::Behind(forwarding) => &forwarding.client,
            Self::OnEdge(edge) => &edge.client,
        }
    }

    pub fn server(&self) -> &Netns {
        match self {
            Self::Behind(forwarding) => &forwarding.server,
            Self::OnEdge(edge) => &edge.server,
        }
    }

    /// The interface to guard.
    pub fn guarded(&self) -> &End {
        match self {
            Self::Behind(forwarding) => &forwarding.outside,
            Self::OnEdge(edge) => &edge.server_end,
        }
    }

    /// What clients dial.
    pub fn dial(&self, v6: bool, port: u16) -> SocketAddr {
        match self {
            Self::Behind(forwarding) => forwarding.dial(v6, port),
            Self::OnEdge(_) if v6 => (SERVER_V6, port).into(),
            Self::OnEdge(_) => (SERVER_V4, port).into(),
        }
    }

    /// The same in both families.
    pub fn both(&self, port: u16) -> [SocketAddr; 2] {
        [false, true].map(|v6| self.dial(v6, port))
    }

    /// Where the server's socket is that clients reach by dialling `port`.
    pub fn bound(&self, v6: bool, port: u16) -> SocketAddr {
        match self {
            Self::Behind(forwarding) => forwarding.bound(v6, port),
            Self::OnEdge(_) => self.dial(v6, port),
        }
    }

    /// A raw socket on the client's end.
    pub fn wire(&self) -> Wire {
        match self {
            Self::Behind(forwarding) => forwarding.client_wire().unwrap(),
            Self::OnEdge(edge) => edge.client_wire().unwrap(),
        }
    }

    /// A frame as a client sends it.
    pub fn frame(&self, from: SocketAddr, to: SocketAddr) -> Frame {
        match self {
            Self::Behind(forwarding) => forwarding.frame(from, to),
            Self::OnEdge(edge) => edge.frame(from, to),
        }
    }

    /// A server on each of the ports.
    pub fn serve(&self) -> HttpServer {
        let port = |port| self.bound(false, port).port();
        let options = ServerOptions {
            port: port(HTTP),
            banner_port: Some(port(BANNER)),
            echo_port: Some(port(ECHO)),
            ..ServerOptions::default()
        };
        HttpServer::start(self.server(), options).unwrap()
    }

    /// Guards it by an admission, calm at first. More for the sections `daemon` and `service`.
    pub fn guard_by(
        &self,
        admission: &str,
        daemon: &str,
        service: &str,
        arguments: &[&str],
    ) -> Guard {
        let [v4, v6] = self.both(0).map(|address| address.ip());
        let config = format!(
            "[daemon]\n{daemon}\n[[service]]\nname = \"web\"\naddresses = [\"{v4}\", \"{v6}\"]\n\
             admission = \"{admission}\"\n{service}\n"
        );
        // The kernel verifies the programs for a second or so. Several daemons that start at once would
        // each take as long as all of them.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _held = ONE_AT_A_TIME.lock();
        Guard::at(self.guarded(), &config, arguments)
    }

    /// Guards it as a proxy that has seen what the server offers, in both families.
    pub fn guard_knowingly(&self) -> Guard {
        self.guard_in("native")
    }

    /// The same with XDP in a mode.
    pub fn guard_in(&self, xdp: &str) -> Guard {
        let guard = self.guard_by("proxy", "", "", &["--xdp-mode", xdp]);
        self.teach(&guard);
        guard
    }

    /// Has a calm daemon see what the server offers, and guard it from then on.
    pub fn teach(&self, guard: &Guard) {
        for target in self.both(HTTP) {
            let _stream = self.connect(target);
        }
        let known = guard.service().server.unwrap();
        assert_eq!(known.source, "learned", "{known:?}");
        guard.set_mode("always");
    }

    /// Connects as a patient client.
    #[track_caller]
    pub fn connect(&self, target: SocketAddr) -> TcpStream {
        self.connect_with(target, ConnectOptions::default())
    }

    /// As a patient client that wants something in particular.
    #[track_caller]
    pub fn connect_with(&self, target: SocketAddr, options: ConnectOptions) -> TcpStream {
        let options = ConnectOptions {
            timeout: PATIENCE,
            ..options
        };
        client::connect(self.client(), target, &options).unwrap()
    }
}
