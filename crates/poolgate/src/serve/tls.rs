//! TLS on the listener, from files that may be exchanged while it runs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::app::App;
use crate::config::Tls as Files;

/// What new connections are met with. Running ones keep what they began with.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    current: ArcSwap<ServerConfig>,
}

/// When the files were last written, and how long they are.
pub type Seen = Vec<Option<(SystemTime, u64)>>;

impl Tls {
    pub fn new(files: Files) -> anyhow::Result<Self> {
        let current = ArcSwap::from_pointee(load(&files)?);
        Ok(Self { files, current })
    }

    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    pub fn seen(&self) -> Seen {
        [&self.files.cert_file, &self.files.key_file]
            .map(|path| {
                let metadata = std::fs::metadata(path).ok()?;
                Some((metadata.modified().ok()?, metadata.len()))
            })
            .to_vec()
    }

    /// Takes the files as they are now; if they are no good, the old ones stay.
    pub fn reload(&self) -> anyhow::Result<()> {
        self.current.store(Arc::new(load(&self.files)?));
        Ok(())
    }
}

fn load(files: &Files) -> anyhow::Result<ServerConfig> {
    let Files { cert_file, key_file } = files;
    let certificates = CertificateDer::pem_file_iter(cert_file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("tls.cert_file {}", cert_file.display()))?;
    anyhow::ensure!(
        !certificates.is_empty(),
        "tls.cert_file {} holds no certificate",
        cert_file.display()
    );
    let key = PrivateKeyDer::from_pem_file(key_file)
        .with_context(|| format!("tls.key_file {}", key_file.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .context("tls.key_file and tls.cert_file do not belong together")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Takes over new files as they come. Both are written one after the other, so a pair that does not
/// fit is looked at again whenever either changes.
pub async fn follow(app: &App, tls: &Tls) {
    let mut seen = tls.seen();
    while app.tasks.stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        let now = tls.seen();
        if now == seen {
            continue;
        }
        seen = now;
        match tls.reload() {
            Ok(()) => tracing::info!("the listener has a new certificate"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the new certificate is no good: the old one stays");
            }
        }
    }
}
