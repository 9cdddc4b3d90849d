//! The control API and the exporter over real sockets, with a run loop that only pretends.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use socket2::{Domain, SockAddr, Socket, Type};
use synguard::{
    control::{
        self, Command, DetachHow, DetachRequest, EventsRequest, Handle, Listing, ServiceRequest,
        SourcesRemoval, SourcesRequest, client::Client, client::ClientError,
    },
    journal::{Journal, Kind, Timestamp, What},
    lists::List,
    metrics,
    model::{Mode, Snapshot},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixListener, UnixStream},
    sync::oneshot,
    task::JoinHandle,
};

fn snapshot() -> Snapshot {
    serde_json::from_str(include_str!("fixtures/snapshot.json")).unwrap()
}

/// A run loop that knows two interfaces and one service, and remembers what it was asked.
fn pretend() -> (Handle, Arc<Mutex<Vec<String>>>) {
    let (handle, mut commands) = Handle::new(Journal::in_memory());
    let log = Arc::new(Mutex::new(Vec::new()));
    let asked = log.clone();
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            let note = |text: String| asked.lock().unwrap().push(text);
            match command {
                Command::Snapshot(reply) => drop(reply.send(snapshot())),
                Command::Attach { interface, reply } => {
                    note(format!("attach {interface}"));
                    let known = snapshot()
                        .interfaces
                        .into_iter()
                        .find(|i| i.name == interface);
                    let answer = known.ok_or(format!("{interface}: no such\ninterface"));
                    drop(reply.send(answer));
                }
                Command::Detach { request, reply } => {
                    note(format!("detach {:?} {:?}", request.interface, request.how));
                    drop(reply.send(Ok("nobody is guarded any more".to_owned())));
                }
                Command::SetMode {
                    service,
                    mode,
                    reply,
                } => {
                    note(format!("mode {service:?} {mode}"));
                    drop(reply.send(Ok(())));
                }
                Command::AddService { request, reply } => {
                    let service = serde_json::to_string(&request.service).unwrap();
                    note(format!("add {service} {}", request.temporary));
                    drop(reply.send(Ok("added".into())));
                }
                Command::RemoveService { name, reply } => {
                    note(format!("remove {name}"));
                    drop(reply.send(Err(format!("no service {name}"))));
                }
                Command::AddSources { request, reply } => {
                    let SourcesRequest { list, prefixes, .. } = &request;
                    note(format!("{list} {} {:?}", prefixes.len(), request.comment));
                    drop(reply.send(Ok("listed".into())));
                }
                Command::RemoveSources { request, reply } => {
                    note(format!("not {} {}", request.list, request.prefixes.len()));
                    drop(reply.send(Err("stands in a file".into())));
                }
                Command::ListSources { list, reply } => {
                    let listing = |n: u32| Listing {
                        prefix: std::net::Ipv4Addr::from(n).to_string().parse().unwrap(),
                        list,
                        until: None,
                        comment: None,
                        origin: "command".into(),
                        in_force: true,
                    };
                    drop(reply.send((1..=2500).map(listing).collect()));
                }
                // A run loop that dies over it.
                Command::Reload { reply } => drop(reply),
            }
        }
    });
    (handle, log)
}

struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn stop(self) {
        drop(self.stop);
        self.task.await.unwrap().unwrap();
    }
}

fn serve_control(socket: &Path, handle: Handle) -> Server {
    let listener = control::bind(socket).unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    Server {
        stop,
        task: tokio::spawn(control::serve(listener, handle, shutdown)),
    }
}

fn serve_metrics(handle: Handle) -> (SocketAddr, Server) {
    let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async { drop(stopped.await) };
    (
        address,
        Server {
            stop,
            task: tokio::spawn(metrics::serve(listener, handle, shutdown)),
        },
    )
}

/// Status, content type and body.
async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<&'static str>,
) -> (u16, String, String) {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = request.map(|body| Full::new(Bytes::from(body)));
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type");
    let kind = kind
        .map(|v| v.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control.sock");
    (directory, socket)
}

#[tokio::test]
async fn the_client_reaches_the_run_loop() {
    let (_directory, socket) = directory();
    let (handle, log) = pretend();
    let server = serve_control(&socket, handle);
    let client = Client::new(&socket);

    let status = client.status().await.unwrap();
    assert_eq!(
        serde_json::to_value(&status).unwrap(),
        serde_json::to_value(snapshot()).unwrap()
    );
    assert_eq!(client.attach("eth0").await.unwrap().index, 2);
    let request = DetachRequest {
        interface: Some("eth0".to_owned()),
        how: DetachHow::Drain,
        patience_seconds: 5,
    };
    assert_eq!(
        client.detach(&request).await.unwrap().message,
        "nobody is guarded any more"
    );
    let done = client.set_mode(Some("web"), Mode::Always).await.unwrap();
    assert_eq!(done.message, "service web is in mode always");
    let done = client.set_mode(None, Mode::Observe).await.unwrap();
    assert_eq!(done.message, "every service is in mode observe");
    let service = serde_json::json!({"name": "mail", "ports": [25]});
    let request = ServiceRequest {
        service: service.as_object().unwrap().clone(),
        temporary: true,
    };
    assert_eq!(client.add_service(&request).await.unwrap().message, "added");
    let refused = client.remove_service("a&b").await.unwrap_err();
    assert!(matches!(&refused, ClientError::Refused(e) if e == "no service a&b"));
    assert!(!refused.is_unreachable());
    assert_eq!(
        *log.lock().unwrap(),
        [
            "attach eth0",
            "detach Some(\"eth0\") Drain",
            "mode Some(\"web\") always",
            "mode None observe",
            "add {\"name\":\"mail\",\"ports\":[25]} true",
            "remove a&b"
        ]
    );

    let refused = client.attach("eth9").await.unwrap_err();
    assert!(matches!(&refused, ClientError::Refused(e) if e == "eth9: no such; interface"));
    let refused = client.reload().await.unwrap_err();
    assert!(matches!(&refused, ClientError::Refused(e) if e == "the daemon is stopping"));

    server.stop().await;
    assert!(!socket.exists());
    let gone = client.status().await.unwrap_err().to_string();
    assert_eq!(
        gone,
        format!(
            "no daemon answers on {}: start it with `synguard run -i IFACE`",
            socket.display()
        )
    );
}

fn added(service: &str) -> What {
    What::ServiceAdded {
        service: service.into(),
    }
}

/// What comes within `patience`, as number and service.
async fn arrive(events: &mut control::client::Events, count: usize) -> Vec<(u64, Option<String>)> {
    let mut arrived = Vec::new();
    while arrived.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(10), events.next());
        let Some(event) = next.await.unwrap().unwrap() else {
            break;
        };
        arrived.push((event.seq, event.service));
    }
    arrived
}

#[tokio::test]
async fn events_are_asked_for_and_followed() {
    let (_directory, socket) = directory();
    let (handle, _) = pretend();
    let journal = handle.journal().clone();
    let server = serve_control(&socket, handle);
    let client = Client::new(&socket);
    for name in ["web", "a&b=c d", "web"] {
        journal.note(added(name));
    }
    journal.note(What::KeyRotated {
        epoch: 1,
        written: 1,
    });
    let numbers = async |request: EventsRequest| {
        let mut events = client.events(&request).await.unwrap();
        let arrived = arrive(&mut events, usize::MAX).await;
        arrived.into_iter().map(|(seq, _)| seq).collect::<Vec<_>>()
    };
    let all = EventsRequest::default();
    assert_eq!(numbers(all.clone()).await, [1, 2, 3]);
    let some = EventsRequest {
        service: Some("a&b=c d".into()),
        ..all.clone()
    };
    assert_eq!(numbers(some).await, [2]);
    let keys = EventsRequest {
        kind: Some(Kind::KeyRotated),
        since: Some(Timestamp::from_millis(0)),
        limit: Some(5),
        ..all.clone()
    };
    assert_eq!(numbers(keys).await, [4]);
    let future = EventsRequest {
        since: Some(Timestamp::from_millis(u64::MAX)),
        ..all.clone()
    };
    assert!(numbers(future).await.is_empty());

    let follow = EventsRequest {
        after: Some(2),
        follow: true,
        ..all
    };
    let mut events = client.events(&follow).await.unwrap();
    assert_eq!(arrive(&mut events, 1).await, [(3, Some("web".into()))]);
    journal.note(added("new"));
    assert_eq!(arrive(&mut events, 1).await, [(5, Some("new".into()))]);
    // A quiet follower does not keep the daemon, and sees the end of it.
    let before = Instant::now();
    server.stop().await;
    assert!(before.elapsed() < Duration::from_secs(1));
    assert!(events.next().await.unwrap().is_none());
}

#[tokio::test]
async fn wrong_requests_get_one_line_of_json() {
    let (_directory, socket) = directory();
    let (handle, log) = pretend();
    let server = serve_control(&socket, handle);
    let cases = [
        ("GET", "/v1/nothing", "", 404, "there is no /v1/nothing"),
        (
            "GET",
            "/v1/events?kind=attack",
            "",
            400,
            "there is no kind of event called `attack`",
        ),
        ("GET", "/v1/events?sice=1", "", 400, "unknown field `sice`"),
        ("GET", "/v1/attach", "", 405, "/v1/attach does not take GET"),
        (
            "POST",
            "/v1/attach",
            "{\"interface\":",
            400,
            "EOF while parsing",
        ),
        (
            "POST",
            "/v1/attach",
            "{\"iface\":\"eth0\"}",
            422,
            "unknown field `iface`",
        ),
        (
            "POST",
            "/v1/mode",
            "{\"service\":null,\"mode\":\"on\"}",
            422,
            "unknown variant `on`",
        ),
        (
            "POST",
            "/v1/attach",
            "{\"interface\":\"eth9\"}",
            409,
            "eth9: no such; interface",
        ),
        ("POST", "/v1/reload", "", 503, "the daemon is stopping"),
    ];
    for (method, path, body, status, error) in cases {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "x");
        let request = request
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        let (got, kind, answer) = http(UnixStream::connect(&socket).await.unwrap(), request).await;
        assert_eq!(got, status, "{path}: {answer}");
        assert_eq!(kind, "application/json");
        let answer: control::Failure = serde_json::from_str(&answer).unwrap();
        assert!(answer.error.contains(error), "{path}: {}", answer.error);
        assert!(!answer.error.contains('\n'));
    }
    assert_eq!(*log.lock().unwrap(), ["attach eth9"]);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_does_not_keep_the_daemon() {
    let (_directory, socket) = directory();
    let (handle, _) = pretend();
    let server = serve_control(&socket, handle);
    let mut half = UnixStream::connect(&socket).await.unwrap();
    half.write_all(b"GET /v1/sta").await.unwrap();
    // Let the server see it.
    Client::new(&socket).status().await.unwrap();
    let before = Instant::now();
    server.stop().await;
    assert!(before.elapsed() < Duration::from_secs(5));
    assert!(!socket.exists());
}

#[tokio::test]
async fn the_exporter_speaks_both_formats() {
    let (handle, _) = pretend();
    let (address, server) = serve_metrics(handle);
    let get = async |path: &str, accept: &str| {
        let request = Request::builder()
            .uri(path)
            .header("host", "x")
            .header("accept", accept);
        http(
            TcpStream::connect(address).await.unwrap(),
            request.body("").unwrap(),
        )
        .await
    };

    let (status, kind, body) = get("/metrics", "*/*").await;
    assert_eq!(
        (status, &*kind),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(
        body.contains("# TYPE synguard_syns_total counter\n"),
        "{body}"
    );
    assert!(
        body.contains("synguard_syns_total{service=\"web\"} 1234567\n"),
        "{body}"
    );
    assert!(!body.contains("# EOF"));

    let (status, kind, body) = get("/metrics", "application/openmetrics-text;version=1.0.0").await;
    let expected = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((status, &*kind), (200, expected));
    assert!(body.contains("# TYPE synguard_syns counter\n"), "{body}");
    assert!(body.ends_with("# EOF\n"));

    assert_eq!(get("/healthz", "*/*").await.0, 200);
    let (status, kind, body) = get("/", "*/*").await;
    assert_eq!((status, &*kind), (200, "text/html; charset=utf-8"));
    assert!(body.contains("href=\"/metrics\""));
    assert_eq!(get("/nothing", "*/*").await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn without_a_run_loop_the_exporter_says_so() {
    let (handle, commands) = Handle::new(Journal::in_memory());
    drop(commands);
    let (address, server) = serve_metrics(handle);
    for path in ["/metrics", "/healthz"] {
        let request = Request::builder()
            .uri(path)
            .header("host", "x")
            .body("")
            .unwrap();
        let answer = http(TcpStream::connect(address).await.unwrap(), request).await;
        assert_eq!((answer.0, &*answer.2), (503, "the daemon is stopping\n"));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_daemon_that_ends_is_told_apart_from_one_that_is_strange() {
    let (_directory, socket) = directory();
    let listener = UnixListener::bind(&socket).unwrap();
    let client = Client::new(&socket);
    let (answer, ()) = tokio::join!(client.status(), async {
        drop(listener.accept().await.unwrap());
    });
    assert!(matches!(answer, Err(ClientError::Ended(path)) if path == socket));
    let (answer, ()) = tokio::join!(client.status(), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Closing with the request unread would reset the connection.
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        stream
            .write_all(b"220 mail.example ESMTP\r\n")
            .await
            .unwrap();
    });
    assert!(
        matches!(&answer, Err(ClientError::Strange { .. })),
        "{answer:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_hangs_is_told_of_in_time() {
    let (_directory, socket) = directory();
    // Connections are accepted by the kernel.
    let _listener = UnixListener::bind(&socket).unwrap();
    let client = Client::new(&socket);
    let hangs = |seconds: u64| {
        let path = socket.display();
        format!("the daemon on {path} has not answered for {seconds} s")
    };
    let error = client.status().await.unwrap_err();
    assert_eq!(error.to_string(), hangs(10));
    assert!(error.is_unreachable());
    for follow in [false, true] {
        let request = EventsRequest {
            follow,
            ..EventsRequest::default()
        };
        let error = client.events(&request).await.unwrap_err();
        assert_eq!(error.to_string(), hangs(10));
    }
    // What may reset a link may take longer.
    let error = client.attach("eth0").await.unwrap_err();
    assert_eq!(error.to_string(), hangs(30));
}

#[tokio::test]
async fn a_queue_full_of_those_who_gave_up_is_told_of() {
    let (_directory, socket) = directory();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&SockAddr::unix(&socket).unwrap()).unwrap();
    listener.listen(0).unwrap();
    // It has room for one more than it says.
    let _first = UnixStream::connect(&socket).await.unwrap();
    let error = Client::new(&socket).status().await.unwrap_err();
    assert!(matches!(error, ClientError::Full(_)), "{error}");
    assert!(error.is_unreachable());
}

/// A daemon that answers with the head of an answer, and then with `said` at these seconds.
async fn mumble(listener: UnixListener, said: &[(u64, &str)]) {
    let (mut stream, _) = listener.accept().await.unwrap();
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let began = tokio::time::Instant::now();
    for (at, said) in said {
        tokio::time::sleep_until(began + Duration::from_secs(*at)).await;
        stream.write_all(said.as_bytes()).await.unwrap();
    }
    std::future::pending().await
}

#[tokio::test(start_paused = true)]
async fn silence_is_told_from_quiet() {
    let (_directory, socket) = directory();
    let listener = UnixListener::bind(&socket).unwrap();
    let event =
        r#"{"seq":1,"time":"2027-01-15T08:00:00Z","kind":"calm","level":"info","message":""}"#;
    let event = format!("{event}\n");
    let said = [(3, "\n"), (9, "\n"), (40, &*event), (45, "\n")];
    let seen = async {
        let client = Client::new(&socket);
        let request = EventsRequest {
            follow: true,
            ..EventsRequest::default()
        };
        let mut events = client.events(&request).await.unwrap();
        let began = tokio::time::Instant::now();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let next = events.next().await;
            seen.push((began.elapsed().as_secs(), next.is_ok()));
        }
        seen
    };
    let seen = tokio::select! {
        seen = seen => seen,
        () = mumble(listener, &said) => unreachable!(),
    };
    // Silent from 9 on, told once; silent again from 45 on.
    assert_eq!(seen, [(19, false), (40, true), (55, false)]);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_daemon_gives_signs_of_life() {
    let (_directory, socket) = directory();
    let (handle, _) = pretend();
    let _server = serve_control(&socket, handle);
    let request = EventsRequest {
        follow: true,
        ..EventsRequest::default()
    };
    let mut events = Client::new(&socket).events(&request).await.unwrap();
    let minute = Duration::from_secs(60);
    let next = tokio::time::timeout(minute, events.next()).await;
    assert!(next.is_err(), "{next:?}");
}

#[tokio::test]
async fn a_taken_metrics_port_is_one_line() {
    let first = metrics::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.address().unwrap();
    let error = metrics::bind(address).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "cannot listen on {address} for metrics: Address already in use (os error 98); name \
             another address with --metrics, or `--metrics off`"
        )
    );
}

#[tokio::test]
async fn lists_of_sources_are_whole_and_may_be_long() {
    let (_directory, socket) = directory();
    let (handle, log) = pretend();
    let server = serve_control(&socket, handle);
    let client = Client::new(&socket);
    let listed = client.list_sources(List::Block).await.unwrap();
    assert_eq!(listed.len(), 2500);
    assert_eq!(listed[2499].prefix.to_string(), "0.0.9.196");

    let prefix = |n: u128| std::net::Ipv6Addr::from(u128::MAX - n).to_string();
    let request = SourcesRequest {
        list: List::Block,
        prefixes: (0..100_000).map(|n| prefix(n).parse().unwrap()).collect(),
        until: None,
        comment: Some("a feed".into()),
        temporary: false,
    };
    assert_eq!(
        client.add_sources(&request).await.unwrap().message,
        "listed"
    );
    let removal = SourcesRemoval {
        list: List::Allow,
        prefixes: request.prefixes.clone(),
    };
    let error = client.remove_sources(&removal).await.unwrap_err();
    assert_eq!(error.to_string(), "stands in a file");
    assert_eq!(
        *log.lock().unwrap(),
        ["block 100000 Some(\"a feed\")", "not allow 100000"]
    );
    server.stop().await;
}
