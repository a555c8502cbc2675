//! A real TLS server with several names: video segments, and pages.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::{INTERNET, INTERNET6, Lab, Side};
use crate::process::{self, Running};
use crate::wait::{self, Seen};

/// A name the agent's catalogue knows as video.
pub const VIDEO: &str = "cdn.streams.example";
/// A name that is no video.
pub const PAGES: &str = "www.pages.example";

/// nginx in the internet namespace.
#[derive(Debug)]
pub struct Nginx {
    running: Running,
    authority: PathBuf,
}

impl Nginx {
    /// Starts it and waits until it answers.
    pub fn start(lab: &Lab) -> Result<Self> {
        let folder = lab.place().folder().join("nginx");
        fs::create_dir_all(folder.join("content"))?;
        let authority = certificates(&folder)?;
        for (name, length) in [("large", 250_000), ("small", 32_000)] {
            fs::write(folder.join("content").join(name), noise(length))?;
        }
        let configuration = folder.join("nginx.conf");
        fs::write(&configuration, self::configuration(&folder))?;
        let nginx =
            lab.inside(Side::Internet, "nginx", ["-c", &configuration.to_string_lossy(), "-e", "stderr"]);
        let mut server = Self { running: Running::start("nginx", nginx, lab.place().folder())?, authority };
        let url = format!("https://{VIDEO}/large/1");
        wait::until("nginx answering", Duration::from_secs(10), || {
            server.running.expect_running()?;
            let resolve = format!("{VIDEO}:443:{INTERNET}");
            let answer = process::run(&mut lab.inside(
                Side::Internet,
                "curl",
                [
                    "-sS",
                    "--max-time",
                    "2",
                    "--resolve",
                    &resolve,
                    "--cacert",
                    &server.authority.to_string_lossy(),
                    "-o",
                    "/dev/null",
                    &url,
                ],
            ));
            Ok(match answer {
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::NotYet(format!("{error:#}")),
            })
        })?;
        Ok(server)
    }

    /// The certificate its clients are to trust.
    pub fn authority(&self) -> &Path {
        &self.authority
    }
}

/// An authority of its own and one certificate for all names; gives the authority's file.
fn certificates(folder: &Path) -> Result<PathBuf> {
    let authority_key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(Vec::new())?;
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "demo internet");
    let certificate = parameters.self_signed(&authority_key)?;
    let issuer = rcgen::Issuer::new(parameters, authority_key);
    let server_key = rcgen::KeyPair::generate()?;
    let server =
        rcgen::CertificateParams::new([VIDEO, PAGES].map(str::to_owned))?.signed_by(&server_key, &issuer)?;
    let authority = folder.join("authority.pem");
    fs::write(&authority, certificate.pem())?;
    fs::write(folder.join("server.pem"), server.pem())?;
    fs::write(folder.join("server.key"), server_key.serialize_pem()).context("write the server's key")?;
    Ok(authority)
}

/// Bytes that compress no better than a video does (a linear congruential generator, Knuth's constants).
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(length)
    .collect()
}

fn configuration(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "user root; worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr;
events {{ worker_connections 256; }}
http {{
  access_log off; default_type application/octet-stream; keepalive_requests 1000000; keepalive_timeout 300s;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder}; uwsgi_temp_path {folder};
  scgi_temp_path {folder};
  ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.key;
  server {{
    listen {INTERNET}:443 ssl; listen [{INTERNET6}]:443 ssl; server_name {VIDEO} {PAGES};
    root {folder}/content;
    location ~ ^/(large|small)/ {{ rewrite ^/(large|small)/ /$1 break; }}
  }}
}}
"
    )
}
