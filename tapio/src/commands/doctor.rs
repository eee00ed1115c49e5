//! `tapio doctor`: what works on this machine, what does not, what to do.

use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tapio_bpf::ProgramState;
use tapio_runtime::nats_server;

use crate::cli::{DoctorArgs, Output};
use crate::config::TapioConfig;
use crate::endpoints::Endpoints;
use crate::exit::FAILED;

/// How long a named NATS server may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// One line of the report.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    ok: bool,
    /// Whether Tapio can run without it.
    required: bool,
    says: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    todo: String,
}

impl Check {
    fn new(name: &str, required: bool, result: Result<String, (String, String)>) -> Self {
        let (ok, says, todo) = match result {
            Ok(says) => (true, says, String::new()),
            Err((says, todo)) => (false, says, todo),
        };
        Self { name: name.to_owned(), ok, required, says, todo }
    }
}

/// Looks, prints, returns 1 when something required is missing.
pub fn run(args: &DoctorArgs) -> anyhow::Result<i32> {
    let config = TapioConfig::load(&args.run)?;
    let mut checks = kernel();
    checks.push(cgroups());
    checks.push(nats(&config));
    checks.extend(ports(&config));
    checks.push(data_dir(&config.data_dir));
    checks.push(kubernetes());
    match args.output {
        Output::Human => checks.iter().for_each(print),
        Output::Json => println!("{}", serde_json::to_string_pretty(&checks)?),
        Output::Jsonl => println!("{}", serde_json::to_string(&checks)?),
    }
    Ok(if checks.iter().any(|c| c.required && !c.ok) { FAILED } else { 0 })
}

fn print(check: &Check) {
    let mark = match (check.ok, check.required) {
        (true, _) => "ok  ",
        (false, true) => "FAIL",
        (false, false) => "less",
    };
    println!("{mark}  {:<22} {}", check.name, check.says);
    if !check.todo.is_empty() {
        println!("      {:<22} → {}", "", check.todo);
    }
}

fn kernel() -> Vec<Check> {
    let probe = tapio_bpf::probe();
    let mut checks = vec![
        Check::new("kernel", false, Ok(probe.kernel_release.clone())),
        Check::new(
            "BTF",
            false,
            if probe.btf {
                Ok("/sys/kernel/btf/vmlinux".to_owned())
            } else {
                Err((
                    "the kernel has no type information: no kernel events".to_owned(),
                    "use a kernel built with CONFIG_DEBUG_INFO_BTF".to_owned(),
                ))
            },
        ),
        Check::new(
            "capabilities",
            false,
            match probe.capabilities.hint() {
                None => Ok("enough for the kernel programs".to_owned()),
                Some(hint) => Err(("not enough for the kernel programs".to_owned(), hint.to_owned())),
            },
        ),
    ];
    match probe.programs {
        Err(error) => checks.push(Check::new(
            "kernel programs",
            false,
            Err((error.to_string(), "the other collectors work without them".to_owned())),
        )),
        Ok(programs) => checks.extend(programs.into_iter().map(|status| {
            let name = format!("program {}", status.program.name());
            let result = match status.state {
                ProgramState::Failed { reason } => Err((reason, String::new())),
                state => Ok(format!("{state:?}").to_lowercase()),
            };
            Check::new(&name, false, result)
        })),
    }
    checks
}

fn cgroups() -> Check {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let memory_v1 = Path::new("/sys/fs/cgroup/memory/memory.usage_in_bytes").exists();
    let result = match (unified, memory_v1) {
        (true, _) => Ok("version 2".to_owned()),
        (false, true) => Ok("version 1 controllers".to_owned()),
        (false, false) => Err((
            "no cgroup hierarchy with a memory controller below /sys/fs/cgroup".to_owned(),
            "mount cgroup2 there; without it there are no memory, CPU and I/O samples".to_owned(),
        )),
    };
    Check::new("cgroups", false, result)
}

fn nats(config: &TapioConfig) -> Check {
    if config.names_nats() {
        let tried: Vec<_> = config.bus.urls.iter().map(|url| reach(url)).collect();
        let one = tried.iter().find(|reached| reached.is_ok()).or(tried.first()).cloned();
        let none = || Err(("bus.urls is empty".to_owned(), "name a server with --nats-url".to_owned()));
        return Check::new("nats-server", true, one.unwrap_or_else(none));
    }
    let result =
        nats_server::find().map(|binary| format!("{} at {}", binary.version, binary.path.display())).map_err(
            |error| (error.to_string(), "run `make setup`, or name a server with --nats-url".to_owned()),
        );
    Check::new("nats-server", true, result)
}

/// Whether something listens at a NATS URL; what it is shows when it is used.
fn reach(url: &str) -> Result<String, (String, String)> {
    let todo = || "start that server, or leave --nats-url away and let `tapio up` start one".to_owned();
    let address = url.rsplit_once("://").map_or(url, |(_, rest)| rest);
    let address = address.rsplit_once('@').map_or(address, |(_, host)| host).trim_end_matches('/');
    let address = if address.contains(':') { address.to_owned() } else { format!("{address}:4222") };
    let resolved = address.to_socket_addrs().ok().and_then(|mut found| found.next());
    let Some(resolved) = resolved else { return Err((format!("{address} does not resolve"), todo())) };
    TcpStream::connect_timeout(&resolved, CONNECT_TIMEOUT)
        .map(|_| format!("{address} answers"))
        .map_err(|error| (format!("{address}: {error}"), todo()))
}

fn ports(config: &TapioConfig) -> Vec<Check> {
    // A file that cannot be read names no instance.
    let own = Endpoints::read(&config.data_dir).ok().flatten();
    let mut listeners = config.listeners();
    if !config.names_nats() {
        listeners.push(("nats.port", format!("127.0.0.1:{}", config.nats.port)));
    }
    let check = |(key, address): (&str, String)| {
        let result = match TcpListener::bind(&address) {
            Ok(_) => Ok(format!("{address} is free")),
            Err(_) if own.as_ref().is_some_and(|own| own.holds(&address)) => {
                Ok(format!("{address} is held by the instance that runs"))
            }
            Err(error) => {
                let free = if key == "nats.port" { "0" } else { "127.0.0.1:0" };
                Err((
                    format!("{address}: {error}"),
                    format!("stop what listens there, or use --set {key}={free}"),
                ))
            }
        };
        Check::new(&format!("port of {key}"), true, result)
    };
    listeners.into_iter().map(check).collect()
}

fn data_dir(dir: &Path) -> Check {
    let probe = dir.join(".doctor");
    let result = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&probe, b"ok"))
        .and_then(|()| std::fs::remove_file(&probe))
        .map(|()| format!("{} is writable", dir.display()))
        .map_err(|error| {
            (format!("{}: {error}", dir.display()), "choose another one with --data-dir".to_owned())
        });
    Check::new("data directory", true, result)
}

fn kubernetes() -> Check {
    let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let file = std::env::var_os("KUBECONFIG").map(std::path::PathBuf::from).or_else(|| {
        std::env::var_os("HOME").map(|home| Path::new(&home).join(".kube/config")).filter(|p| p.exists())
    });
    let result = match (in_cluster, file) {
        (true, _) => Ok("inside a cluster".to_owned()),
        (false, Some(path)) if path.exists() => Ok(format!("kubeconfig {}", path.display())),
        (false, Some(path)) => Err((
            format!("kubeconfig {} does not exist", path.display()),
            "set KUBECONFIG to a file that does, to attribute containers to workloads".to_owned(),
        )),
        (false, None) => Err((
            "no cluster: containers are named by their ids".to_owned(),
            "set KUBECONFIG to attribute containers to workloads".to_owned(),
        )),
    };
    Check::new("kubernetes", false, result)
}
