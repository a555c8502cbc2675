//! The metrics page, `GET /metrics`: few visitors at once, and none for long.
//!
//! Refuses to let whoever reaches the address take the agent's file descriptors: further visitors wait in the kernel's
//! queue, and a visit that takes too long is broken off.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use axum::serve::Listener;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use crate::metrics::Metrics;

/// Visitors at once.
const VISITORS_MAX: usize = 16;

/// Longest visit; a scraper that keeps its connection opens another after that.
const VISIT: Duration = Duration::from_mins(1);

/// Serves the page until the task is aborted.
pub async fn serve(listener: TcpListener, metrics: Metrics) {
    serve_within(VISIT, listener, metrics).await;
}

async fn serve_within(visit: Duration, listener: TcpListener, metrics: Metrics) {
    let places = Arc::new(Semaphore::new(VISITORS_MAX));
    let door = Door { listener, places, visit, waited: metrics.page_waited.clone() };
    let page = move || {
        let text = metrics.text();
        async move { ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text) }
    };
    let router = Router::new().route("/metrics", get(page));
    if let Err(error) = axum::serve(door, router).await {
        tracing::error!("metrics are not served any more: {error}");
    }
}

/// The address, and the places behind it.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    visit: Duration,
    waited: Counter,
}

impl Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        if self.places.available_permits() == 0 {
            self.waited.inc();
        }
        // Never closed; without a place there would be no bound, but still a page.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (io, address) = Listener::accept(&mut self.listener).await;
        (Visit { io, end: Box::pin(tokio::time::sleep(self.visit)), _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection, when it is broken off, and the place it holds.
struct Visit {
    io: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Visit {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn get_page(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn visitors_that_say_nothing_hold_up_the_next_for_a_while_and_no_longer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new();
        let serving = tokio::spawn(serve_within(Duration::from_secs(1), listener, metrics.clone()));
        assert!(get_page(address).await.contains("usher_agent_"));
        let mut silent = Vec::new();
        for _ in 0..VISITORS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        assert!(get_page(address).await.starts_with("HTTP/1.1 200"));
        assert!(metrics.page_waited.get() >= 1);
        serving.abort();
    }
}
