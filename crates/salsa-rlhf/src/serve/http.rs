//! The listening side: connections, their limits, and the end of the server.
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

use super::{app::App, routes, timed::Timed};

/// Most headers of a request.
const MOST_HEADERS: usize = 64;

/// Most bytes of the head of a request.
const MOST_HEAD: usize = 32 << 10;

/// How long nobody is let in where the system has no room for another connection.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` says so; then what runs is finished, up to a limit.
///
/// # Errors
/// If the address cannot be listened at.
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
            // No descriptors are left, or the peer is gone already.
            sleep(PAUSE).await;
            continue;
        };
        let (app, open) = (app.clone(), open.clone());
        let connection = graceful.watch(connection(app.clone(), stream));
        app.metrics.set_connections(open.fetch_add(1, Ordering::Relaxed) + 1);
        tokio::spawn(async move {
            // A connection that fails is the peer's matter.
            let _ = connection.await;
            app.metrics.set_connections(open.fetch_sub(1, Ordering::Relaxed) - 1);
            drop(permit);
        });
    }
    drop(listener);
    app.is_stopping.store(true, Ordering::Relaxed);
    // Those that are left after this are cut off with the process.
    let _ = timeout(app.limits.shutdown, graceful.shutdown()).await;
    Ok(())
}

/// One connection, which serves one request after the other.
fn connection(
    app: Arc<App>,
    stream: TcpStream,
) -> impl hyper_util::server::graceful::GracefulConnection<Error = hyper::Error> {
    // Pieces of a stream are small and shall not wait for each other; a system that cannot say so serves all the same.
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
        .serve_connection(TokioIo::new(Timed::new(stream, limit)), service)
}
