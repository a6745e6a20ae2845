//! The listener: connections, their limits, and the shutdown of the server.
use std::{
    convert::Infallible,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Context;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use super::{app::App, routes, timed::WriteTimeout};

/// Maximum number of headers of a request.
const MOST_HEADERS: usize = 64;

/// Maximum number of bytes of a request head.
const MOST_HEAD: usize = 32 << 10;

/// Pause after a failed accept, for example if no descriptors are left.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is set; then waits for running requests, up to a limit.
///
/// # Errors
/// If listening on the address fails.
pub(super) async fn serve(app: Arc<App>, listener: TcpListener, mut stop: watch::Receiver<bool>) -> anyhow::Result<()> {
    listener.set_nonblocking(true).context("cannot listen")?;
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot listen")?;
    let connections = Arc::new(Semaphore::new(app.limits.connections));
    let open = Arc::new(AtomicUsize::new(0));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = async {
            let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accepted => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptors are left, or the peer has disconnected already.
            sleep(PAUSE).await;
            continue;
        };
        let (app, open) = (app.clone(), open.clone());
        let connection = graceful.watch(connection(app.clone(), stream));
        app.metrics.set_connections(open.fetch_add(1, Ordering::Relaxed) + 1);
        tokio::spawn(async move {
            // Errors of a connection concern only its peer.
            let _ = connection.await;
            app.metrics.set_connections(open.fetch_sub(1, Ordering::Relaxed) - 1);
            drop(permit);
        });
    }
    drop(listener);
    app.is_stopping.store(true, Ordering::Relaxed);
    // Connections left after this are closed with the process.
    let _ = timeout(app.limits.shutdown, graceful.shutdown()).await;
    Ok(())
}

/// Serves the requests of one connection one after another.
fn connection(
    app: Arc<App>,
    stream: TcpStream,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    // Disables Nagle's algorithm, since pieces of a stream are small; a failure does no harm.
    let _ = stream.set_nodelay(true);
    let limit = app.limits.client;
    let service = service_fn(move |request: Request<Incoming>| {
        let app = app.clone();
        async move { Ok::<_, Infallible>(routes::answer(app, request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEAD)
        .serve_connection(TokioIo::new(WriteTimeout::new(stream, limit)), service)
}
