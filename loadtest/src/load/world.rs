//! The cluster that the load pretends to come from: 50 machines, 200 workloads, 2,000 pods, a few units per machine.

use std::sync::Arc;

use tapio_schemas::entity::{EntityRef, kinds};
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::{SmolStr, shard};

use super::random::Random;

/// Machines.
pub const NODES: usize = 50;
/// Workloads (Deployments).
pub const WORKLOADS: usize = 200;
/// Pods, ten of each workload.
pub const PODS: usize = 2_000;
/// Workloads whose numbers differ by this have their pods on the same machines.
pub const SPREAD: usize = NODES * WORKLOADS / PODS;
/// Calls of a request, one below the other; each has a client span and a server span.
pub const HOPS: usize = 4;
/// Ways that requests take: an even share for each of the [`SPREAD`] groups of machines.
pub const PATHS: usize = 16 * SPREAD;
/// Workloads that one workload has connections to.
const PEERS: usize = 4;
/// Workloads in which nothing is injected; only their pods come and go in the background.
pub const CALM_WORKLOADS: usize = 64;
/// Units per machine outside of pods.
const UNITS: [&str; 4] = ["kubelet.service", "containerd.service", "sshd.service", "node-exporter.service"];
const NAMESPACES: usize = 20;
/// Names tried to find one for a wanted shard; the expected number is the number of shards.
const NAMES_MAX: usize = 1 << 16;

/// A workload with its pods.
#[derive(Debug)]
pub struct Workload {
    /// Name.
    pub name: SmolStr,
    /// Namespace.
    pub namespace: SmolStr,
    /// Its containers, one per pod, as a node agent attributes them.
    pub containers: Vec<Arc<EntityRef>>,
    /// The same as telemetry names them: with `service.name`.
    pub services: Vec<Arc<EntityRef>>,
    /// Address of its Service.
    pub address: [u8; 16],
}

/// A way that requests take through the cluster: the same callers, callees and routes in each.
#[derive(Debug)]
pub struct Path {
    /// The caller and those called one below the other, by number.
    pub workloads: [usize; HOPS + 1],
    /// What each call asks for.
    pub routes: [&'static str; HOPS],
}

/// All of it.
#[derive(Debug)]
pub struct World {
    /// Cluster name.
    pub cluster: SmolStr,
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Ways that requests take; those whose numbers differ by [`SPREAD`] have their pods on the same machines.
    pub paths: Vec<Path>,
    /// Units outside of pods, by machine.
    pub units: Vec<Arc<EntityRef>>,
    /// For each shard: its workloads.
    pub by_shard: Vec<Vec<usize>>,
    /// For each shard: its units.
    pub units_by_shard: Vec<Vec<usize>>,
}

impl World {
    /// The same seed gives the same cluster.
    ///
    /// Workloads are named so that each shard has three or four: 200 names taken by chance leave shards empty, and the
    /// shape of one small cluster is not what is measured.
    pub fn new(cluster: &str, seed: u64) -> Self {
        let mut random = Random::new(seed).fork(1);
        let mut by_shard = vec![Vec::new(); usize::from(SHARD_COUNT)];
        let workloads: Vec<Workload> = (0..WORKLOADS)
            .map(|number| {
                let shard = number % by_shard.len();
                by_shard[shard].push(number);
                workload(cluster, number, shard as u16, &mut random)
            })
            .collect();
        let units: Vec<_> = (0..NODES).flat_map(|node| UNITS.iter().map(move |u| (node, *u))).collect();
        let units: Vec<_> = units.into_iter().map(|(node, name)| unit(cluster, node, name)).collect();
        let mut units_by_shard = vec![Vec::new(); usize::from(SHARD_COUNT)];
        for (number, unit) in units.iter().enumerate() {
            units_by_shard[usize::from(shard(unit.lineage))].push(number);
        }
        let paths = (0..PATHS).map(|number| path(number, &mut random)).collect();
        Self { cluster: cluster.into(), workloads, paths, units, by_shard, units_by_shard }
    }

    /// One of those that the workload with this number has connections to.
    pub fn peer(&self, number: usize, random: &mut Random) -> &Workload {
        // As far apart as seven others are: each is somebody's peer.
        &self.workloads[(number + 1 + 7 * random.below(PEERS)) % self.workloads.len()]
    }
}

/// Name of a machine.
pub fn node(number: usize) -> SmolStr {
    format!("node-{:02}", number % NODES).into()
}

/// Calls go from one tier to the next, so that the graph of calls has no circle.
fn path(number: usize, random: &mut Random) -> Path {
    let tier = WORKLOADS / (HOPS + 1);
    let mut at = |level: usize| level * tier + number % SPREAD + SPREAD * random.below(tier / SPREAD);
    let workloads = std::array::from_fn(&mut at);
    Path { workloads, routes: std::array::from_fn(|_| ROUTES[random.below(ROUTES.len())]) }
}

fn workload(cluster: &str, number: usize, wanted: u16, random: &mut Random) -> Workload {
    let namespace: SmolStr = format!("team-{:02}", number % NAMESPACES).into();
    let named = |attempt: usize| {
        let name: SmolStr = format!("{}-{number:03}{}", ROLES[number % ROLES.len()], suffix(attempt)).into();
        EntityRef {
            cluster: cluster.into(),
            namespace: namespace.clone(),
            workload_kind: kinds::DEPLOYMENT.into(),
            workload: name,
            ..EntityRef::default()
        }
        .sealed()
    };
    let owner = (0..NAMES_MAX).map(named).find(|owner| shard(owner.lineage) == wanted);
    let owner = owner.unwrap_or_else(|| named(0));
    let hash = format!("{:010x}", random.bits() & 0xff_ffff_ffff);
    let containers: Vec<Arc<EntityRef>> = (0..PODS / WORKLOADS)
        .map(|replica| {
            let place = number * (PODS / WORKLOADS) + replica;
            let bits = random.wide();
            let uid = format!(
                "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
                bits as u32,
                (bits >> 32) as u16,
                (bits >> 48) as u16 & 0xfff,
                (bits >> 60) as u16 & 0xfff,
                (bits >> 76) & 0xffff_ffff_ffff
            );
            Arc::new(EntityRef {
                pod: format!("{}-{hash}-{:05x}", owner.workload, bits as u32 & 0xf_ffff).into(),
                pod_uid: uid.into(),
                container: "main".into(),
                container_id: format!("{:032x}{:032x}", random.wide(), random.wide()).into(),
                node: node(place),
                ..owner.clone()
            })
        })
        .collect();
    let services = containers
        .iter()
        .map(|c| Arc::new(EntityRef { service: owner.workload.clone(), ..EntityRef::clone(c) }))
        .collect();
    let address = std::net::Ipv4Addr::new(10, 96, (number / 250) as u8, (number % 250 + 1) as u8);
    Workload {
        name: owner.workload.clone(),
        namespace,
        containers,
        services,
        address: address.to_ipv6_mapped().octets(),
    }
}

/// What services are asked for.
pub const ROUTES: [&str; 6] =
    ["/api/v1/items", "/api/v1/cart", "/api/v1/orders", "/api/v1/users", "/healthz", "/api/v1/search"];

const ROLES: [&str; 8] = ["api", "cart", "search", "billing", "mail", "stock", "auth", "feed"];

fn suffix(attempt: usize) -> String {
    if attempt == 0 { String::new() } else { format!("-{attempt:x}") }
}

fn unit(cluster: &str, number: usize, name: &str) -> Arc<EntityRef> {
    let entity = EntityRef {
        cluster: cluster.into(),
        node: node(number),
        unit: name.into(),
        cgroup: format!("/system.slice/{name}").into(),
        ..EntityRef::default()
    };
    Arc::new(entity.sealed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shard_has_its_share_of_workloads() {
        let world = World::new("load", 1);
        assert_eq!(world.workloads.len(), WORKLOADS);
        assert_eq!(world.workloads.iter().map(|w| w.containers.len()).sum::<usize>(), PODS);
        for (number, of_shard) in world.by_shard.iter().enumerate() {
            assert!((3..=4).contains(&of_shard.len()), "shard {number}: {of_shard:?}");
            for workload in of_shard {
                let entity = &world.workloads[*workload].containers[0];
                assert_eq!(usize::from(shard(entity.lineage)), number);
            }
        }
    }

    #[test]
    fn names_are_unique() {
        let world = World::new("load", 1);
        let mut names: Vec<_> = world.workloads.iter().map(|w| (&w.namespace, &w.name)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), WORKLOADS);
    }
}
