//! The daemon: starts up, runs the loop that owns everything, and leaves no trace.
//!
//! [`run`] checks all that can fail before it touches the interface. The loop ticks four times a
//! second: it follows the services ([`service`], [`calm`], [`tuning`]), keeps clock and keys ([`keys`]), and
//! looks at the world again ([`links`], [`listeners`], [`sysctl`]) when rtnetlink says that it
//! changed, and every few seconds regardless. All commands come through one channel. Threads of their
//! own give up half-open connections ([`sweep`]) and look after flows ([`flows`]).

pub(crate) mod admission;
mod attack;
pub mod calm;
pub(crate) mod clock;
mod drain;
mod errands;
mod flows;
mod guard;
mod inject;
mod interfaces;
mod kept;
mod keyless;
pub(crate) mod keys;
pub(crate) mod links;
pub(crate) mod listeners;
pub(crate) mod lists;
mod notify;
mod numbers;
pub(crate) mod patience;
pub(crate) mod plan;
mod rate;
mod reload;
mod remind;
mod room;
pub(crate) mod secret;
pub(crate) mod service;
mod services;
mod snapshot;
pub(crate) mod startup;
mod sweep;
pub(crate) mod sysctl;
pub mod tuning;
pub mod watermark;
mod worker;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};
use tracing::{error, info, warn};

pub use self::startup::NoInterface;
use self::{
    guard::{Beginnings, Guard},
    keys::KeyRing,
    links::{Netlink, World},
    notify::Systemd,
};
use crate::{
    config::{Overrides, Sources},
    control::{self, Command, DetachHow, DetachRequest, Handle},
    dataplane::{
        self,
        error::{AttachError, NearNames},
    },
    journal::{Journal, What},
    metrics,
    model::{InterfaceStatus, XdpMode},
};

/// The loop's beat.
const TICK: Duration = Duration::from_millis(250);
/// Time after which the world is looked at again though nothing was heard of it: listeners and
/// settings do not announce themselves.
const REFRESH: Duration = Duration::from_secs(5);
/// What the servers get to end.
const PATIENCE: Duration = Duration::from_secs(4);

/// What `synguard run` was told.
#[derive(Clone, Debug)]
pub struct RunArgs {
    /// The configuration file.
    pub config_path: Option<PathBuf>,
    /// What the command line says in its place.
    pub overrides: Overrides,
}

/// Runs the daemon until SIGINT or SIGTERM.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(daemon(args))
}

async fn daemon(args: RunArgs) -> anyhow::Result<()> {
    let sources = Sources::read(args.config_path.as_deref(), &args.overrides)?;
    let config = sources.config()?;
    let interfaces = startup::interfaces(&config)?;
    startup::check_capabilities()?;
    let mut signals = Signals::catch()?;
    let netlink = Netlink::connect()?;
    let mut world = netlink.discover().await?;
    check_interfaces(&interfaces, &world)?;
    let socket = control::bind(&config.socket)?;
    let scrape = config.metrics.map(metrics::bind).transpose()?;
    let keys = KeyRing::new(&secret::obtain(&config.secret)?);

    let systemd = Systemd::new();
    let options = dataplane::Options {
        half_open_entries: config.half_open_entries,
        flow_entries: config.flow_entries,
        verified_entries: config.verified_entries,
    };
    let journal = config
        .state
        .as_deref()
        .map_or_else(Journal::in_memory, Journal::open);
    let pins = startup::open_pins(config.pins.as_deref())?;
    let dataplane = match &pins {
        Some(pins) => {
            if startup::drain_foreign(pins, &systemd, &journal)? {
                // What was attached is so no more.
                world = netlink.discover().await?;
            }
            dataplane::load_pinned(&options, pins)?
        }
        None => dataplane::load(&options)?,
    };
    if dataplane.adopted {
        let capacity = |table: &str| dataplane.maps.capacity(table);
        startup::compare_sizes(&options, capacity, &journal);
    }
    let xdp_mode = config.xdp_mode;
    let mut guard = Guard::start(Beginnings {
        journal: journal.clone(),
        config,
        sources,
        dataplane,
        pins,
        keys,
        world,
    })?;
    for name in &interfaces {
        guard.attach(name)?;
    }
    guard.guard_on();
    guard.forget_programs();
    if xdp_mode == XdpMode::Generic {
        warn!("generic XDP was asked for: it is several times slower than native XDP");
    }

    let (handle, commands) = Handle::new(journal.clone());
    let (stopping, stopped) = watch::channel(());
    let mut servers = vec![spawn(
        "control API",
        control::serve(socket, handle.clone(), until(stopped.clone())),
    )];
    if let Some(listener) = scrape {
        servers.push(spawn(
            "metrics",
            metrics::serve(listener, handle, until(stopped)),
        ));
    }
    systemd.ready();
    guard.ready();

    let signal = run_loop(&mut guard, netlink, commands, &mut signals, &systemd).await;

    systemd.stopping();
    guard.tuning.close();
    // Whoever sits at the terminal wants the machine back; whoever manages services wants no gap.
    match signal {
        "SIGINT" => {
            guard.end_attacks();
            guard.take_off();
        }
        _ => guard.leave(),
    }
    drop(stopping);
    for server in servers {
        if timeout(PATIENCE, server).await.is_err() {
            warn!("a server did not end in time");
        }
    }
    journal.note(What::DaemonStopped {
        signal: signal.to_owned(),
    });
    journal.close();
    Ok(())
}

async fn run_loop(
    guard: &mut Guard,
    mut netlink: Netlink,
    mut commands: mpsc::Receiver<Command>,
    signals: &mut Signals,
    systemd: &Systemd,
) -> &'static str {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut refresh_due = Instant::now() + REFRESH;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                // First: flows are aged by it.
                if let Err(error) = guard.write_clock() {
                    error!("{error:#}");
                }
                guard.tick();
                let now = Instant::now();
                if now >= refresh_due {
                    refresh_due = now + REFRESH;
                    refresh(guard, &netlink).await;
                }
                systemd.alive(now);
            }
            // Changes come in swarms: the next tick sees to all of them at once.
            () = netlink.changed() => refresh_due = Instant::now(),
            Some(command) = commands.recv() => execute(guard, &netlink, systemd, command).await,
            signal = signals.next() => match signal {
                // What came of it is in the journal.
                "SIGHUP" => drop(reload(guard, systemd)),
                name => {
                    info!("{name}: stopping");
                    return name;
                }
            },
        }
    }
}

async fn refresh(guard: &mut Guard, netlink: &Netlink) {
    match netlink.discover().await {
        Ok(world) => guard.refresh(world),
        Err(error) => warn!("{error:#}"),
    }
}

/// Executes a command. Whoever asked may have gone: then nobody wants the answer.
async fn execute(guard: &mut Guard, netlink: &Netlink, systemd: &Systemd, command: Command) {
    match command {
        Command::Snapshot(reply) => {
            // The kernel may have turned a service guarded since the last tick.
            guard.tick();
            let _ = reply.send(guard.snapshot());
        }
        Command::Attach { interface, reply } => {
            let _ = reply.send(attach(guard, netlink, &interface).await);
        }
        Command::Detach { request, reply } => {
            let _ = reply.send(detach(guard, &request));
        }
        Command::SetMode {
            service,
            mode,
            reply,
        } => {
            let _ = reply.send(guard.set_mode(service.as_deref(), mode));
        }
        Command::AddService { request, reply } => {
            let _ = reply.send(guard.add_service(&request));
        }
        Command::RemoveService { name, reply } => {
            let _ = reply.send(guard.remove_service(&name));
        }
        Command::AddSources { request, reply } => {
            let _ = reply.send(guard.add_sources(request));
        }
        Command::RemoveSources { request, reply } => {
            let _ = reply.send(guard.remove_sources(request));
        }
        Command::ListSources { list, reply } => {
            let _ = reply.send(guard.list_sources(list));
        }
        Command::Reload { reply } => {
            let _ = reply.send(reload(guard, systemd));
        }
    }
}

async fn attach(
    guard: &mut Guard,
    netlink: &Netlink,
    name: &str,
) -> Result<InterfaceStatus, String> {
    // The interface may have come since the last look.
    refresh(guard, netlink).await;
    if guard.is_draining() {
        guard.stop_draining()?;
    } else if guard.guards(name) {
        return Err(format!(
            "interface {name} is guarded by this daemon already"
        ));
    }
    if !guard.guards(name) {
        guard.attach(name).map_err(|error| error.to_string())?;
    }
    guard
        .interface_status(name)
        .ok_or_else(|| format!("interface {name} has just vanished"))
}

fn detach(guard: &mut Guard, request: &DetachRequest) -> Result<String, String> {
    let names = guard.interface_names();
    let spliced = guard.would_be_cut();
    let others = || {
        names
            .iter()
            .filter(|name| Some(*name) != request.interface.as_ref())
    };
    match (request.how, &request.interface) {
        (DetachHow::Unless, _) if spliced > 0 => Err(format!(
            "{spliced} spliced connections would be cut: --drain waits until they have ended, --now cuts them"
        )),
        (DetachHow::Drain, Some(name)) if !guard.guards(name) => guard.detach(name).map(drop),
        (DetachHow::Drain, Some(_)) if others().next().is_some() => Err(
            "--drain is for all interfaces at once, as a connection may use several: name none, or use --now"
                .to_owned(),
        ),
        (DetachHow::Drain, _) => {
            return guard
                .drain(Duration::from_secs(request.patience_seconds))
                .map(|()| format!("draining: {spliced} spliced connections are left"));
        }
        (_, Some(name)) => guard.detach(name),
        (_, None) => {
            guard.take_off();
            guard.replan().map_err(|error| format!("{error:#}"))
        }
    }?;
    Ok(match &request.interface {
        Some(name) => format!("{name} is no longer guarded"),
        None if names.is_empty() => "no interface was guarded".to_owned(),
        None => format!("no longer guarded: {}", names.join(", ")),
    })
}

fn reload(guard: &mut Guard, systemd: &Systemd) -> Result<String, String> {
    systemd.reloading();
    let result = guard.reload();
    systemd.ready();
    result
}

fn check_interfaces(names: &[String], world: &World) -> Result<(), AttachError> {
    for name in names {
        if world.by_name(name).is_none() {
            let hint = NearNames::new(name, world.names());
            return Err(AttachError::UnknownInterface {
                name: name.clone(),
                hint,
            });
        }
    }
    Ok(())
}

fn spawn(
    what: &'static str,
    server: impl Future<Output = std::io::Result<()>> + Send + 'static,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = server.await {
            error!("the {what} has ended: {error}");
        }
    })
}

/// Resolves once the sender is dropped.
async fn until(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    reload: Signal,
}

impl Signals {
    fn catch() -> anyhow::Result<Self> {
        let catch = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            reload: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.reload.recv() => "SIGHUP",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
