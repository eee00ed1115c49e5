//! A control plane of its own for each test: etcd, API server, controller manager and scheduler with RBAC on, as they come.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::Api;
use crate::binaries::program;
use crate::certs::Certs;
use crate::common::wait_for;
use crate::process::{Process, free_port};

const CONTROLLERS: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";

/// What is audited: changes with what they ask for, nothing that is only read.
const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - { level: None, verbs: [get, list, watch] }
  - { level: None, resources: [{ group: coordination.k8s.io }, { group: '', resources: [events] }] }
  - { level: Request }
";

/// The running programs, and an administrator of them. The last ones depend on the first ones, and end before them.
pub struct Plane {
    pub api: Api,
    controllers: Option<Process>,
    scheduler: Option<Process>,
    server: Option<Process>,
    _etcd: Process,
    certs: Certs,
    ports: Ports,
    /// Where all its files are.
    pub dir: TempDir,
}

struct Ports {
    etcd: u16,
    server: u16,
    controllers: u16,
    scheduler: u16,
    audit: u16,
}

impl Plane {
    /// Starts all of it, and waits until it answers and a namespace can hold pods.
    pub fn start() -> Self {
        let dir = TempDir::with_prefix("tapio-plane-").unwrap();
        let certs = Certs::new(dir.path());
        certs.sign("server", "/CN=kube-apiserver");
        certs.sign("admin", "/O=system:masters/CN=admin");
        certs.sign("scheduler", "/CN=system:kube-scheduler");
        let [etcd, peers, server, controllers, scheduler, audit] = std::array::from_fn(|_| free_port());
        let ports = Ports { etcd, server, controllers, scheduler, audit };
        std::fs::write(dir.path().join("audit-policy"), AUDIT_POLICY).unwrap();
        std::fs::write(dir.path().join("audit-token"), "said-by-the-server").unwrap();
        let etcd = Process::start("etcd", dir.path(), &etcd_args(&dir, etcd, peers));
        let admin =
            json!({"client-certificate": certs.file("admin.crt"), "client-key": certs.file("admin.key")});
        written(&dir, &certs, server, "admin", &admin);
        let user = json!({"client-certificate": certs.file("scheduler.crt"), "client-key": certs.file("scheduler.key")});
        written(&dir, &certs, server, "scheduler", &user);
        let webhook = json!({"apiVersion": "v1", "kind": "Config", "current-context": "tapio",
            "clusters": [{"name": "tapio", "cluster": {"server": format!("https://127.0.0.1:{audit}/audit"),
                "certificate-authority": certs.file("authority.crt")}}],
            "users": [{"name": "tapio", "user": {"tokenFile": dir.path().join("audit-token")}}],
            "contexts": [{"name": "tapio", "context": {"cluster": "tapio", "user": "tapio"}}]});
        std::fs::write(dir.path().join("audit-webhook"), webhook.to_string()).unwrap();
        let api = Api::of(&dir.path().join("admin.kubeconfig"));
        let mut plane =
            Self { api, controllers: None, scheduler: None, server: None, _etcd: etcd, certs, ports, dir };
        plane.start_server();
        plane.controllers = Some(plane.process(CONTROLLERS, &plane.controller_args()));
        plane.scheduler = Some(plane.process(SCHEDULER, &plane.scheduler_args()));
        wait_for("the service account of the first namespace", || {
            plane.controllers.as_mut().unwrap().assert_runs();
            plane.scheduler.as_mut().unwrap().assert_runs();
            plane.api.get("/api/v1/namespaces/default/serviceaccounts/default")
        });
        plane
    }

    /// Starts the API server and waits until it is ready.
    pub fn start_server(&mut self) {
        self.server = Some(self.process("kube-apiserver", &self.server_args()));
        wait_for("a ready API server", || {
            self.server.as_mut().unwrap().assert_runs();
            self.api.text("/readyz").filter(|said| said == "ok")
        });
    }

    /// Kills the API server.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// Makes etcd forget all versions before the newest, as it does every few minutes.
    pub fn compact(&self) {
        let newest = self.ask_etcd("range", &json!({"key": "AA=="}));
        let revision = newest["header"]["revision"].clone();
        let done = self.ask_etcd("compaction", &json!({"revision": revision, "physical": true}));
        assert!(done.get("header").is_some(), "compaction up to {revision}: {done}");
    }

    fn ask_etcd(&self, what: &str, request: &Value) -> Value {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports.etcd)).unwrap();
        let body = request.to_string();
        let bytes = body.len();
        write!(stream, "POST /v3/kv/{what} HTTP/1.0\r\nhost: etcd\r\ncontent-length: {bytes}\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        serde_json::from_str(body).unwrap_or_default()
    }

    /// The 20 of version 1.20.
    pub fn minor_version(&self) -> u32 {
        let version: Value = serde_json::from_str(&self.api.text("/version").unwrap()).unwrap();
        version["gitVersion"].as_str().and_then(|text| text.split('.').nth(1)?.parse().ok()).unwrap()
    }

    /// The kubeconfig of an administrator.
    pub fn admin(&self) -> String {
        self.dir.path().join("admin.kubeconfig").display().to_string()
    }

    /// A kubeconfig for who shows this token.
    pub fn with_token(&self, name: &str, token: &str) -> String {
        written(&self.dir, &self.certs, self.ports.server, name, &json!({"token": token}))
            .display()
            .to_string()
    }

    /// A kubeconfig for who shows a certificate of this subject.
    pub fn with_certificate(&self, name: &str, subject: &str) -> String {
        self.certs.sign(name, subject);
        let [certificate, key] = ["crt", "key"].map(|kind| self.certs.file(&format!("{name}.{kind}")));
        let user = json!({"client-certificate": certificate, "client-key": key});
        written(&self.dir, &self.certs, self.ports.server, name, &user).display().to_string()
    }

    /// A token of a service account, as its pods have one.
    pub fn token_of(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = self.api.ask("POST", &path, "application/json", Some(&request));
        let answer = answer.unwrap_or_else(|refused| panic!("{path}: {refused}"));
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// Settings of an agent that receives what the API server audits.
    pub fn audit(&self) -> Value {
        json!({"listen": format!("127.0.0.1:{}", self.ports.audit), "token_file": self.dir.path().join("audit-token"),
            "tls_certificate": self.certs.file("server.crt"), "tls_key": self.certs.file("server.key")})
    }

    /// Where metrics are: of etcd, of the scheduler, of the controller manager.
    pub fn metrics(&self) -> [String; 3] {
        let Ports { etcd, scheduler, controllers, .. } = self.ports;
        [
            format!("http://127.0.0.1:{etcd}/metrics"),
            format!("https://127.0.0.1:{scheduler}/metrics"),
            format!("https://127.0.0.1:{controllers}/metrics"),
        ]
    }

    /// Kills the scheduler.
    pub fn stop_scheduler(&mut self) {
        self.scheduler = None;
    }

    fn process(&self, name: &'static str, args: &[String]) -> Process {
        Process::start(name, self.dir.path(), args)
    }

    fn server_args(&self) -> Vec<String> {
        let path = |name: &str| self.certs.path(name);
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd),
            format!("--secure-port={}", self.ports.server),
            format!("--cert-dir={}", path("")),
            format!("--client-ca-file={}", path("authority.crt")),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--service-account-key-file={}", path("accounts.pub")),
            format!("--service-account-signing-key-file={}", path("accounts.key")),
            format!("--kubelet-client-certificate={}", path("admin.crt")),
            format!("--kubelet-client-key={}", path("admin.key")),
            format!("--audit-policy-file={}", path("audit-policy")),
            format!("--audit-webhook-config-file={}", path("audit-webhook")),
        ];
        args.extend(
            [
                "--bind-address=127.0.0.1",
                // The Service of the API server takes no address of loopback.
                "--advertise-address=192.0.2.1",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--authorization-mode=Node,RBAC",
                "--allow-privileged=true",
                "--audit-webhook-mode=batch",
                "--audit-webhook-batch-max-wait=1s",
                "--audit-webhook-initial-backoff=1s",
            ]
            .map(str::to_owned),
        );
        args
    }

    fn controller_args(&self) -> Vec<String> {
        let admin = self.admin();
        let path = |name: &str| self.certs.path(name);
        let mut args = no_plain_port(CONTROLLERS);
        args.extend([
            format!("--kubeconfig={admin}"),
            format!("--authentication-kubeconfig={admin}"),
            format!("--authorization-kubeconfig={admin}"),
            format!("--secure-port={}", self.ports.controllers),
            format!("--cert-dir={}", path("")),
            format!("--root-ca-file={}", path("authority.crt")),
            format!("--service-account-private-key-file={}", path("accounts.key")),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            "--horizontal-pod-autoscaler-sync-period=5s".to_owned(),
        ]);
        args
    }

    fn scheduler_args(&self) -> Vec<String> {
        let own = self.dir.path().join("scheduler.kubeconfig").display().to_string();
        let mut args = no_plain_port(SCHEDULER);
        args.extend([
            format!("--kubeconfig={own}"),
            format!("--authentication-kubeconfig={own}"),
            format!("--authorization-kubeconfig={own}"),
            format!("--secure-port={}", self.ports.scheduler),
            format!("--cert-dir={}", self.certs.path("")),
            "--bind-address=127.0.0.1".to_owned(),
            "--leader-elect=false".to_owned(),
        ]);
        args
    }
}

/// Before 1.24 these also serve without encryption, every one of them on the same port: that is turned off where it is.
fn no_plain_port(name: &str) -> Vec<String> {
    let help = Command::new(program(name)).arg("--help").output().unwrap();
    let has_it = String::from_utf8_lossy(&help.stdout).contains("--port int");
    has_it.then(|| "--port=0".to_owned()).into_iter().collect()
}

fn etcd_args(dir: &TempDir, clients: u16, peers: u16) -> Vec<String> {
    let [clients, peers] = [clients, peers].map(|port| format!("http://127.0.0.1:{port}"));
    vec![
        format!("--data-dir={}", dir.path().join("etcd").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
    ]
}

/// A kubeconfig in a file, `name`.kubeconfig.
fn written(dir: &TempDir, certs: &Certs, port: u16, name: &str, user: &Value) -> PathBuf {
    let server = json!({"server": format!("https://127.0.0.1:{port}"), "certificate-authority": certs.file("authority.crt")});
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": name,
        "clusters": [{"name": "plane", "cluster": server}], "users": [{"name": name, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": "plane", "user": name}}]});
    let path = dir.path().join(format!("{name}.kubeconfig"));
    std::fs::write(&path, config.to_string()).unwrap();
    path
}
