//! Real QUIC: a server of megabytes, and a client that fetches them from one subscriber's address after the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

pub(crate) const PORT: u16 = 443;

/// What to serve, or to fetch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Where `authority.pem`, `server.pem` and `server.key` are.
    pub(crate) certificates: PathBuf,
    pub(crate) server: Ipv4Addr,
    /// A subscriber's address and the name it asks for.
    pub(crate) fetches: Vec<(Ipv4Addr, String)>,
    pub(crate) bytes: usize,
    /// Between the beginnings of two fetches.
    pub(crate) every_ms: u64,
}

/// Certificates of one authority for `names`, in `folder`.
pub(crate) fn certificates(folder: &Path, names: &[&str]) -> Result<()> {
    let authority_key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(Vec::new())?;
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&authority_key)?;
    let issuer = rcgen::Issuer::new(parameters, authority_key);
    let key = rcgen::KeyPair::generate()?;
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let server = rcgen::CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("authority.pem"), certificate.pem())?;
    std::fs::write(folder.join("server.pem"), server.pem())?;
    std::fs::write(folder.join("server.key"), key.serialize_pem())?;
    Ok(())
}

/// Serves until killed.
pub(crate) async fn serve(task: &Task) -> Result<()> {
    let chain = vec![CertificateDer::from_pem_file(task.certificates.join("server.pem"))?];
    let key = PrivateKeyDer::from_pem_file(task.certificates.join("server.key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h3".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
    let endpoint = quinn::Endpoint::server(config, SocketAddr::from((task.server, PORT)))?;
    let content: Arc<[u8]> = vec![0x5a; task.bytes].into();
    while let Some(incoming) = endpoint.accept().await {
        let content = Arc::clone(&content);
        tokio::spawn(async move {
            let connection = incoming.await?;
            let (mut send, mut receive) = connection.accept_bi().await?;
            receive.read_to_end(1_024).await?;
            send.write_all(&content).await?;
            send.finish()?;
            connection.closed().await;
            anyhow::Ok(())
        });
    }
    Ok(())
}

/// Fetches all, one after the other begun in its time.
pub(crate) async fn fetch(task: &Task) -> Result<()> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(task.certificates.join("authority.pem"))?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h3".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let mut turns = tokio::time::interval(std::time::Duration::from_millis(task.every_ms.max(1)));
    let mut fetches = Vec::new();
    for (from, name) in task.fetches.clone() {
        turns.tick().await;
        let (config, server, bytes) = (config.clone(), task.server, task.bytes);
        fetches.push(tokio::spawn(async move {
            let endpoint = quinn::Endpoint::client(SocketAddr::from((from, 0)))?;
            let connecting = endpoint.connect_with(config, SocketAddr::from((server, PORT)), &name)?;
            let connection = connecting.await.with_context(|| format!("connect from {from}"))?;
            let (mut send, mut receive) = connection.open_bi().await?;
            send.write_all(b"all of it").await?;
            send.finish()?;
            let got = receive.read_to_end(bytes).await?.len();
            anyhow::ensure!(got == bytes, "{from} got {got} bytes, not {bytes}");
            connection.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
            anyhow::Ok(())
        }));
    }
    for fetch in fetches {
        fetch.await??;
    }
    Ok(())
}
