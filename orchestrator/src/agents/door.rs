//! How agents' connections come in: no more at once than there are places, further ones wait in the kernel's queue.
//!
//! A place is held from the accept to the end of the connection, so also by one that never ends its handshake: what the
//! process is allowed to open is left to the agents that have an uplink, and to everything else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection and the place it holds.
#[derive(Debug)]
pub(super) struct Seated {
    io: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// Connections as they come, at most `places` of them at once; `waited` counts how often all places were taken. Ends
/// when the stream is dropped.
pub(super) fn incoming(
    mut listener: TcpListener,
    places: usize,
    waited: Counter,
) -> ReceiverStream<io::Result<Seated>> {
    let (seated, stream) = mpsc::channel(1);
    let places = Arc::new(Semaphore::new(places));
    tokio::spawn(async move {
        loop {
            let next = async {
                if places.available_permits() == 0 {
                    waited.inc();
                }
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                // Pauses by itself where the system has no room for another connection.
                let (io, _) = axum::serve::Listener::accept(&mut listener).await;
                Some(Seated { io, _place: place })
            };
            tokio::select! {
                Some(connection) = next => if seated.send(Ok(connection)).await.is_err() { return },
                () = seated.closed() => return,
            }
        }
    });
    ReceiverStream::new(stream)
}

impl Connected for Seated {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.io.connect_info()
    }
}

impl AsyncRead for Seated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Seated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn no_more_connections_than_places_and_the_next_gets_in_when_one_is_free() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let waited = Counter::default();
        let mut stream = incoming(listener, 2, waited.clone());
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let first = stream.next().await.unwrap().unwrap();
        let second = stream.next().await.unwrap().unwrap();
        while waited.get() == 0 {
            tokio::task::yield_now().await;
        }
        let mut next = std::pin::pin!(stream.next());
        assert!(once(next.as_mut()).await.is_pending(), "both places are taken");
        drop(first);
        let third = next.await.unwrap().unwrap();
        assert_eq!(third.io.peer_addr().unwrap(), clients[2].local_addr().unwrap());
        assert!(waited.get() >= 1);
        drop(second);
    }

    /// Polls once.
    async fn once<F: Future + Unpin>(mut future: F) -> Poll<F::Output> {
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut future).poll(cx))).await
    }
}
