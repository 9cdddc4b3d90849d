//! Serving HTTP in a way that ends: what both listeners of the daemon have in common.

use std::{future::Future, io, time::Duration};

use axum::{Router, serve::Listener};
use tokio::{sync::oneshot, time::sleep};

/// What running requests get when the daemon stops. A client that sends half a request and waits
/// must not keep it.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `shutdown` resolves and running requests are answered, or [`GRACE`] is over.
pub(crate) async fn serve<L>(
    listener: L,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let (stopping, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        shutdown.await;
        drop(stopping);
    };
    let deadline = async {
        stopped.await.ok();
        sleep(GRACE).await;
    };
    tokio::select! {
        served = axum::serve(listener, router).with_graceful_shutdown(shutdown) => served,
        () = deadline => Ok(()),
    }
}
