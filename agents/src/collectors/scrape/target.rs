//! Asking a target: its metrics line by line, and its checks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{Request, StatusCode, header};
use futures::StreamExt;
use kube::client::Body;
use kube::config::{
    AuthInfo, Cluster as KubeCluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster,
    NamedContext,
};
use kube::{Client, Config};
use tapio_runtime::clock::SharedClock;

use super::config::{Role, TargetConfig};
use super::exposition::{self, Lines, Sample};
use crate::collectors::kubernetes::snapshot::api::Cluster;

/// Where an API server says what of it is ready.
const CHECKS_PATH: &str = "/readyz?verbose";
/// Bytes of the answer to that.
const CHECKS_BYTES_MAX: usize = 1 << 20;
/// Checks that are told as failed; an API server has some fifty.
const CHECKS_MAX: usize = 64;
/// Both forms of text.
const ACCEPT: &str =
    "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.9,*/*;q=0.1";

/// Why a target said nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It is not there, not in time, or says itself that it fails.
    #[error("{0}")]
    Away(String),
    /// It is there, and what it says cannot be had: that says nothing of how it fares.
    #[error("{0}")]
    Unusable(String),
}

/// Where the API server of this cluster is: as the Kubernetes collector is told.
#[derive(Debug, Clone, Default)]
pub struct Home {
    /// File of the kubeconfig; none for that of the environment, or the pod's own account.
    pub kubeconfig: Option<PathBuf>,
    /// Name of the context in it; none for its current one.
    pub context: Option<String>,
}

/// Bounds of an answer.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for head and body.
    pub timeout: Duration,
    /// Bytes.
    pub body_max: u64,
}

/// A target that can be asked.
#[derive(Clone)]
pub struct Target {
    client: Client,
    path: String,
    /// For messages; has no credentials.
    pub name: String,
    /// What it is.
    pub role: Role,
    timeout: Duration,
    body_max: u64,
}

/// What came beside the samples.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Samples.
    pub samples: u64,
    /// Lines that are none.
    pub broken: u64,
}

impl Target {
    /// Makes one. Does not talk to it; a token file is read with each request that needs it anew.
    ///
    /// # Errors
    /// In words, when the configuration cannot be used.
    pub async fn new(
        config: &TargetConfig,
        Limits { timeout, body_max }: Limits,
        home: &Home,
        clock: SharedClock,
    ) -> Result<Self, String> {
        if config.url.is_empty() {
            if config.role != Role::ApiServer {
                return Err("a target without a url is an api_server: name the url".to_owned());
            }
            let cluster = Cluster::find(home.kubeconfig.as_deref(), home.context.as_deref(), clock).await;
            let cluster = cluster.map_err(|error| error.to_string())?;
            let (client, name) = (cluster.client(), cluster.address().to_owned());
            return Ok(Self { client, path: "/metrics".into(), name, role: config.role, timeout, body_max });
        }
        let (server, path) = split(&config.url)?;
        let options = KubeConfigOptions::default();
        let found = Config::from_custom_kubeconfig(kubeconfig(config, server), &options).await;
        let mut found = found.map_err(|error| format!("cannot use {}: {error}", config.url))?;
        (found.connect_timeout, found.read_timeout) = (Some(timeout), Some(timeout));
        found.default_retry = false;
        let client =
            Client::try_from(found).map_err(|error| format!("cannot use {}: {error}", config.url))?;
        Ok(Self { client, path, name: config.url.clone(), role: config.role, timeout, body_max })
    }

    /// Gives every sample to `each`.
    ///
    /// # Errors
    /// [`Failure`], with the reason.
    pub async fn metrics(&self, each: &mut impl FnMut(&Sample<'_>)) -> Result<Read, Failure> {
        let read = tokio::time::timeout(self.timeout, self.read(each)).await;
        read.unwrap_or_else(|_| Err(self.late()))
    }

    async fn read(&self, each: &mut impl FnMut(&Sample<'_>)) -> Result<Read, Failure> {
        let (status, mut chunks) = self.ask(&self.path).await?;
        if status != StatusCode::OK {
            return Err(self.refused(status));
        }
        let (mut lines, mut read, mut bytes) = (Lines::default(), Read::default(), 0_u64);
        let mut line = |text: &str, read: &mut Read| match exposition::parse(text) {
            Ok(Some(sample)) => {
                read.samples += 1;
                each(&sample);
            }
            Ok(None) => {}
            Err(_) => read.broken += 1,
        };
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Failure::Away(format!("{} broke off: {error}", self.name)))?;
            bytes += chunk.len() as u64;
            if bytes > self.body_max {
                let reason = format!("{} says more than scrape.body_max, {} bytes", self.name, self.body_max);
                return Err(Failure::Unusable(reason));
            }
            lines.take(&chunk, &mut |text| line(text, &mut read));
        }
        lines.end(&mut |text| line(text, &mut read));
        read.broken += lines.broken;
        if read.samples == 0 && read.broken > 0 {
            return Err(Failure::Unusable(format!("what {} says are no metrics", self.name)));
        }
        Ok(read)
    }

    /// Names of the checks that fail, of an API server; none when all are well.
    ///
    /// # Errors
    /// [`Failure`], with the reason.
    pub async fn failed_checks(&self) -> Result<Vec<String>, Failure> {
        let asked = tokio::time::timeout(self.timeout, async {
            let (status, mut chunks) = self.ask(CHECKS_PATH).await?;
            let mut body = Vec::new();
            while let Some(chunk) = chunks.next().await {
                body.extend(
                    chunk.map_err(|error| Failure::Away(format!("{} broke off: {error}", self.name)))?,
                );
                if body.len() > CHECKS_BYTES_MAX {
                    return Err(Failure::Unusable(format!("{} says too much of its checks", self.name)));
                }
            }
            Ok((status, body))
        });
        let (status, body) = asked.await.unwrap_or_else(|_| Err(self.late()))?;
        let failed = failed(&String::from_utf8_lossy(&body));
        match status {
            StatusCode::OK => Ok(failed),
            // It says what is not well with an error, and each check on a line.
            status if status.is_server_error() && !failed.is_empty() => Ok(failed),
            status => Err(self.refused(status)),
        }
    }

    async fn ask(&self, path: &str) -> Result<(StatusCode, axum::body::BodyDataStream), Failure> {
        let request = Request::get(path).header(header::ACCEPT, ACCEPT).body(Body::empty());
        let request = request.map_err(|error| Failure::Unusable(format!("{}: {error}", self.name)))?;
        let answer = self.client.send(request).await;
        let answer = answer.map_err(|error| self.unanswered(&error))?;
        let (head, body) = answer.into_parts();
        Ok((head.status, axum::body::Body::new(body).into_data_stream()))
    }

    fn unanswered(&self, error: &kube::Error) -> Failure {
        let reason = format!("{} does not answer: {}", self.name, chain(error));
        // A token or certificate of ours that cannot be used says nothing of the target.
        match error {
            kube::Error::Auth(_) | kube::Error::RustlsTls(_) => Failure::Unusable(reason),
            _ if reason.contains("certificate") => Failure::Unusable(reason),
            _ => Failure::Away(reason),
        }
    }

    fn refused(&self, status: StatusCode) -> Failure {
        let reason = format!("{} answers {status}", self.name);
        match status {
            status if status.is_server_error() => Failure::Away(reason),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::Unusable(format!("{reason}: give it a token or certificate that may get /metrics"))
            }
            _ => Failure::Unusable(reason),
        }
    }

    fn late(&self) -> Failure {
        Failure::Away(format!("{} has not answered within {} s", self.name, self.timeout.as_secs_f32()))
    }
}

/// `[-]etcd failed: reason withheld`.
fn failed(checks: &str) -> Vec<String> {
    let names = checks.lines().filter_map(|line| line.strip_prefix("[-]")?.split_whitespace().next());
    names.take(CHECKS_MAX).map(str::to_owned).collect()
}

/// Server and path of a URL.
fn split(url: &str) -> Result<(String, String), String> {
    let wrong = || format!("`{url}` is no url; write https://host:port/metrics");
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
    let has_secret = host.contains('@');
    if !["http", "https"].contains(&scheme) || host.is_empty() || has_secret {
        return Err(if has_secret {
            "put no password into a url: use token_file".to_owned()
        } else {
            wrong()
        });
    }
    Ok((format!("{scheme}://{host}"), format!("/{path}")))
}

fn kubeconfig(config: &TargetConfig, server: String) -> Kubeconfig {
    let text = |path: &Option<std::path::PathBuf>| {
        path.as_deref().map(Path::to_string_lossy).map(std::borrow::Cow::into_owned)
    };
    let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    let cluster = KubeCluster {
        server: Some(server),
        certificate_authority: text(&config.ca_file),
        insecure_skip_tls_verify: Some(config.insecure),
        tls_server_name: named(&config.server_name),
        ..KubeCluster::default()
    };
    let user = AuthInfo {
        token_file: text(&config.token_file),
        client_certificate: text(&config.cert_file),
        client_key: text(&config.key_file),
        ..AuthInfo::default()
    };
    let context = Context { cluster: "target".into(), user: Some("target".into()), ..Context::default() };
    Kubeconfig {
        clusters: vec![NamedCluster { name: "target".into(), cluster: Some(cluster), ..Default::default() }],
        auth_infos: vec![NamedAuthInfo {
            name: "target".into(),
            auth_info: Some(user),
            ..Default::default()
        }],
        contexts: vec![NamedContext { name: "target".into(), context: Some(context), ..Default::default() }],
        current_context: Some("target".into()),
        ..Kubeconfig::default()
    }
}

/// An error with all its causes: the outer ones say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_and_hold_no_password() {
        let split = |url| split(url).map(|(server, path)| format!("{server} {path}"));
        assert_eq!(split("http://10.0.0.1:9153/metrics").unwrap(), "http://10.0.0.1:9153 /metrics");
        assert_eq!(split("https://host:1").unwrap(), "https://host:1 /metrics");
        assert_eq!(split("https://host/a/b?c=d").unwrap(), "https://host /a/b?c=d");
        for wrong in ["host:1/metrics", "ftp://host/x", "https:///metrics"] {
            assert!(split(wrong).unwrap_err().contains("is no url"), "{wrong}");
        }
        let error = split("https://me:secret@host/metrics").unwrap_err();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn failed_checks_are_named() {
        let said = "[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\n[-]poststarthook/x failed: reason withheld\nreadyz check failed\n";
        assert_eq!(failed(said), ["etcd", "poststarthook/x"]);
        assert!(failed("[+]ping ok\nreadyz check passed\n").is_empty());
    }
}
