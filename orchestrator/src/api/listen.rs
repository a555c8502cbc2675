//! Doors: how HTTP requests come in. A Unix socket, TCP, or TCP under TLS; the same bounded loop behind each.
//!
//! Owns binding, the number of connections at once and how long one may take. Refuses to take a socket from a process
//! that still answers on it.

use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Connections at once at one door; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// How long clients are borne with.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// A request's head, and a TLS handshake, arrive within this.
    head: Duration,
    /// Longest life of a connection, so that slow readers cannot hold all places.
    life: Duration,
}

const PATIENCE: Patience = Patience { head: Duration::from_secs(10), life: Duration::from_mins(1) };
/// Requests under way when the daemon stops are given this long.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// Longest request line and headers together.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Connections that had to wait because all places behind a door were taken. One for the process, as its doors are.
pub(super) static WAITED: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Why a door does not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Another process answers there.
    #[error("socket {0} is in use by a running process: stop it, or set another socket path")]
    InUse(PathBuf),
    /// Something that is no socket lies there.
    #[error("{0} exists and is no socket: move it away, or set another socket path")]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on socket {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Address {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the TLS or token configuration cannot be used.
    #[error("cannot use {what} {path}: {why}")]
    File {
        /// What the file is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A bound Unix socket; its file goes when this does.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may already have put its own in this place.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl UnixDoor {
    /// Binds `path`, readable and writable for owner and group only. Replaces a socket nobody answers on.
    pub async fn bind(path: &Path) -> Result<Self, DoorError> {
        let error = |source| DoorError::Socket { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) if !is_socket(&metadata) => return Err(DoorError::NotASocket(path.to_owned())),
            Ok(_) if tokio::net::UnixStream::connect(path).await.is_ok() => {
                return Err(DoorError::InUse(path.to_owned()));
            }
            Ok(_) | Err(_) => {}
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(error)?;
        }
        // Made under another name and moved into place, so that it never stands there with open permissions.
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(error)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o660)).map_err(error)?;
        let inode = fs::symlink_metadata(&fresh).map_err(error)?.ino();
        fs::rename(&fresh, path).map_err(error)?;
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), inode } })
    }

    /// Serves until `stop` turns true or its sender is gone.
    pub(crate) async fn serve(self, router: Router, stop: watch::Receiver<bool>) {
        let Self { listener, file } = self;
        run(listener, None, router, stop, PATIENCE).await;
        drop(file);
    }
}

fn is_socket(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    metadata.file_type().is_socket()
}

/// A bound TCP address, with or without TLS.
pub struct TcpDoor {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for TcpDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpDoor").field("listener", &self.listener).field("tls", &self.tls.is_some()).finish()
    }
}

impl TcpDoor {
    /// Binds `address` in plain HTTP.
    pub async fn bind(address: SocketAddr) -> Result<Self, DoorError> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| DoorError::Address { address, source })?;
        Ok(Self { listener, tls: None })
    }

    /// Binds `address` under TLS 1.2 or 1.3 with this certificate chain and key (PEM).
    pub async fn bind_tls(address: SocketAddr, certificate: &Path, key: &Path) -> Result<Self, DoorError> {
        let tls = acceptor(certificate, key)?;
        let mut door = Self::bind(address).await?;
        door.tls = Some(tls);
        Ok(door)
    }

    /// Where it listens; the port is a real one even if 0 was asked for.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves `router` until `stop` is done, then lets requests under way end.
    pub async fn serve_until(self, router: Router, stop: impl Future<Output = ()> + Send) {
        let (stopping, stopped) = watch::channel(false);
        let mut serving = pin!(self.serve(router, stopped));
        tokio::select! {
            () = &mut serving => return,
            () = stop => { let _ = stopping.send(true); }
        }
        serving.await;
    }

    pub(crate) async fn serve(self, router: Router, stop: watch::Receiver<bool>) {
        run(self.listener, self.tls, router, stop, PATIENCE).await;
    }
}

fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, DoorError> {
    let unusable = |what, path: &Path, why: String| DoorError::File { what, path: path.to_owned(), why };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unusable("certificate", certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(unusable("certificate", certificate, "no certificate in it".to_owned()));
    }
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|error| unusable("key", key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|error| unusable("certificate and key", certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn run<L>(
    mut listener: L,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut stop: watch::Receiver<bool>,
    patience: Patience,
) where
    L: Listener,
    L::Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            if places.available_permits() == 0 {
                WAITED.inc();
            }
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await.0)
        };
        tokio::select! {
            (place, io) = next => {
                let (tls, router, stop) = (tls.clone(), router.clone(), stop.clone());
                connections.spawn(async move {
                    // Nothing is owed to a connection that takes too long.
                    let _ = tokio::time::timeout(patience.life, connection(io, tls, router, stop, patience.head)).await;
                    drop(place);
                });
            }
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stop) => break,
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN_WITHIN, drained).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection<I>(
    io: I,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: watch::Receiver<bool>,
    head: Duration,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(tls) = tls else {
        return answer(io, router, stop, head).await;
    };
    match tokio::time::timeout(head, tls.accept(io)).await {
        Ok(Ok(io)) => answer(io, router, stop, head).await,
        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => tracing::debug!("TLS handshake took too long"),
    }
}

async fn answer<I>(io: I, router: Router, mut stop: watch::Receiver<bool>, head: Duration)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_private_to_owner_and_group_and_goes_with_its_door() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/usher.sock");
        let door = UnixDoor::bind(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(door);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("usher.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a process that dies leaves its socket behind");
        let door = UnixDoor::bind(&path).await.unwrap();
        let error = UnixDoor::bind(&path).await.unwrap_err();
        assert!(matches!(error, DoorError::InUse(_)), "{error}");
        assert!(tokio::net::UnixStream::connect(&path).await.is_ok(), "the refusal changed nothing");
        drop(door);
    }

    #[tokio::test]
    async fn a_client_that_never_ends_its_request_is_cut_off() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let door = TcpDoor::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = door.address().unwrap();
        let (stopping, stopped) = watch::channel(false);
        let short = Patience { head: Duration::from_millis(50), life: Duration::from_mins(1) };
        let serving = tokio::spawn(run(door.listener, None, Router::new(), stopped, short));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(!String::from_utf8_lossy(&answer).contains("200"), "nothing was asked");
        stopping.send(true).unwrap();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("usher.sock");
        fs::write(&path, "notes").unwrap();
        assert!(matches!(UnixDoor::bind(&path).await, Err(DoorError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"notes");
    }
}
