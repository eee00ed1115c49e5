//! What a control group's path says about its owner.

use smol_str::SmolStr;

/// Owner of a control group as far as its path tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupOwner {
    /// The root: everything and nobody.
    Root,
    /// A container, perhaps of a pod.
    Container {
        /// Pod uid with dashes; empty outside of pods.
        pod_uid: SmolStr,
        /// Container id, 64 hexadecimal digits.
        container_id: SmolStr,
    },
    /// A pod as a whole.
    Pod {
        /// Pod uid with dashes.
        pod_uid: SmolStr,
    },
    /// A systemd unit.
    Unit {
        /// Its name.
        name: SmolStr,
    },
    /// None of these.
    Plain,
}

/// Reads a path below its hierarchy's root (`/a/b`), of either driver of the kubelet (cgroupfs, systemd), of
/// containerd, docker, CRI-O and podman, and of systemd.
pub fn owner_of(path: &str) -> CgroupOwner {
    let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    if segments.is_empty() {
        return CgroupOwner::Root;
    }
    let pod = segments.iter().position(|s| pod_uid(s).is_some());
    let container = segments.iter().skip(pod.map_or(0, |at| at + 1)).find_map(|s| container_id(s));
    let pod_uid = pod.and_then(|at| pod_uid(segments[at])).unwrap_or_default();
    if let Some(container_id) = container {
        return CgroupOwner::Container { pod_uid, container_id };
    }
    if !pod_uid.is_empty() {
        return CgroupOwner::Pod { pod_uid };
    }
    match unit(&segments) {
        Some(name) => CgroupOwner::Unit { name: name.into() },
        None => CgroupOwner::Plain,
    }
}

/// `pod<uid>`, or `kubepods-burstable-pod<uid with _>.slice`. The uid of a static pod is a hash without dashes.
fn pod_uid(segment: &str) -> Option<SmolStr> {
    let segment = segment.strip_suffix(".slice").unwrap_or(segment);
    let uid = match segment.rfind("-pod") {
        Some(at) => &segment[at + 4..],
        None => segment.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let is_uid = digits == 32
        && matches!(uid.len(), 32 | 36)
        && uid.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
    is_uid.then(|| uid.into())
}

/// `<id>`, `cri-containerd-<id>.scope`, `docker-<id>.scope`, `crio-<id>.scope`, `libpod-<id>.scope`,
/// `crio-<id>` — but not `crio-conmon-<id>.scope`, which is the container's minder.
fn container_id(segment: &str) -> Option<SmolStr> {
    let name = segment.strip_suffix(".scope").unwrap_or(segment);
    let (prefix, id) = name.rsplit_once('-').unwrap_or(("", name));
    let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    (is_id && !prefix.ends_with("conmon")).then(|| id.into())
}

/// The deepest service, else the deepest scope, else the deepest slice.
fn unit<'a>(segments: &[&'a str]) -> Option<&'a str> {
    [".service", ".scope", ".slice"]
        .iter()
        .find_map(|suffix| segments.iter().rev().find(|s| s.ends_with(suffix) && s.len() > suffix.len()))
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f0c1f6b8b6f4c6fa2c1d2e3f4a5b6c7d8e9f0a1b2c3d4e5f60718293a4b5c6d";
    const UID: &str = "0f4e2d3c-1b2a-4c5d-8e9f-a0b1c2d3e4f5";

    fn container(pod_uid: &str) -> CgroupOwner {
        CgroupOwner::Container { pod_uid: pod_uid.into(), container_id: ID.into() }
    }

    #[test]
    fn containers_of_every_runtime_and_driver() {
        let underscored = UID.replace('-', "_");
        let slice =
            format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{underscored}.slice");
        let in_pods = [
            format!("/kubepods/burstable/pod{UID}/{ID}"),
            format!("/kubepods/pod{UID}/{ID}"),
            format!("{slice}/cri-containerd-{ID}.scope"),
            format!("{slice}/crio-{ID}.scope"),
            format!("{slice}/docker-{ID}.scope"),
            format!("{slice}/cri-containerd-{ID}.scope/init.scope"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{underscored}.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubelet/kubepods/besteffort/pod{UID}/{ID}/worker"),
        ];
        for path in &in_pods {
            assert_eq!(owner_of(path), container(UID), "{path}");
        }
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/k8s.io/{ID}"),
        ] {
            assert_eq!(owner_of(&path), container(""), "{path}");
        }
        // The minder of a container belongs to the pod, not to the container.
        assert_eq!(
            owner_of(&format!("{slice}/crio-conmon-{ID}.scope")),
            CgroupOwner::Pod { pod_uid: UID.into() }
        );
        let hash = "a".repeat(32);
        let static_pod = format!("/kubepods/burstable/pod{hash}");
        assert_eq!(owner_of(&static_pod), CgroupOwner::Pod { pod_uid: hash.into() });
    }

    #[test]
    fn units_and_the_rest() {
        let unit = |name: &str| CgroupOwner::Unit { name: name.into() };
        assert_eq!(owner_of("/system.slice/ssh.service"), unit("ssh.service"));
        assert_eq!(owner_of("/system.slice/postgres.service/worker"), unit("postgres.service"));
        let nested = "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service";
        assert_eq!(owner_of(nested), unit("web.service"));
        assert_eq!(owner_of("/user.slice/user-0.slice/session-1.scope"), unit("session-1.scope"));
        assert_eq!(owner_of("/system.slice"), unit("system.slice"));
        assert_eq!(owner_of("/tapio-demo"), CgroupOwner::Plain);
        assert_eq!(owner_of("/podium"), CgroupOwner::Plain);
        assert_eq!(owner_of("/"), CgroupOwner::Root);
    }
}
