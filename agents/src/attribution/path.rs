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
/// containerd, docker, CRI-O and podman, and of systemd. Gives the owner and the owner's own group: a service or a
/// container may divide its group further, and what happens there still is its own.
pub fn owner_of(path: &str) -> (CgroupOwner, &str) {
    let segments: Vec<Segment<'_>> = segments(path);
    if segments.is_empty() {
        return (CgroupOwner::Root, "/");
    }
    let pod = segments.iter().enumerate().find_map(|(at, s)| Some((at, pod_uid(s.name)?)));
    let (after_pod, pod_uid) =
        pod.as_ref().map_or((0, SmolStr::default()), |(at, uid)| (at + 1, uid.clone()));
    let container = segments[after_pod..].iter().find_map(|s| Some((s.end, container_id(s.name)?)));
    if let Some((end, container_id)) = container {
        return (CgroupOwner::Container { pod_uid, container_id }, &path[..end]);
    }
    if let Some((at, pod_uid)) = pod {
        return (CgroupOwner::Pod { pod_uid }, &path[..segments[at].end]);
    }
    match unit(&segments) {
        Some(unit) => (CgroupOwner::Unit { name: unit.name.into() }, &path[..unit.end]),
        None => (CgroupOwner::Plain, path),
    }
}

/// A part of a path, and where it ends in it.
#[derive(Clone, Copy)]
struct Segment<'a> {
    name: &'a str,
    end: usize,
}

fn segments(path: &str) -> Vec<Segment<'_>> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let mut start = 0;
    ends.filter_map(|end| {
        let name = &path[start..end];
        start = end + 1;
        (!name.is_empty()).then_some(Segment { name, end })
    })
    .collect()
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
fn unit<'a>(segments: &[Segment<'a>]) -> Option<Segment<'a>> {
    [".service", ".scope", ".slice"]
        .iter()
        .find_map(|suffix| {
            segments.iter().rev().find(|s| s.name.ends_with(suffix) && s.name.len() > suffix.len())
        })
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(path: &str) -> CgroupOwner {
        owner_of(path).0
    }

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
            assert_eq!(owner(path), container(UID), "{path}");
        }
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/k8s.io/{ID}"),
        ] {
            assert_eq!(owner(&path), container(""), "{path}");
        }
        // The minder of a container belongs to the pod, not to the container.
        assert_eq!(
            owner(&format!("{slice}/crio-conmon-{ID}.scope")),
            CgroupOwner::Pod { pod_uid: UID.into() }
        );
        let hash = "a".repeat(32);
        let static_pod = format!("/kubepods/burstable/pod{hash}");
        assert_eq!(owner(&static_pod), CgroupOwner::Pod { pod_uid: hash.into() });
    }

    #[test]
    fn units_and_the_rest() {
        let unit = |name: &str| CgroupOwner::Unit { name: name.into() };
        assert_eq!(owner("/system.slice/ssh.service"), unit("ssh.service"));
        assert_eq!(owner("/system.slice/postgres.service/worker"), unit("postgres.service"));
        let nested = "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service";
        assert_eq!(owner(nested), unit("web.service"));
        assert_eq!(owner("/user.slice/user-0.slice/session-1.scope"), unit("session-1.scope"));
        assert_eq!(owner("/system.slice"), unit("system.slice"));
        assert_eq!(owner("/tapio-demo"), CgroupOwner::Plain);
        assert_eq!(owner("/podium"), CgroupOwner::Plain);
        assert_eq!(owner("/"), CgroupOwner::Root);
    }

    #[test]
    fn what_an_owner_divides_stays_its_own() {
        let own = |path: &'static str| owner_of(path).1;
        assert_eq!(own("/system.slice/postgres.service/worker"), "/system.slice/postgres.service");
        assert_eq!(own("/system.slice/postgres.service"), "/system.slice/postgres.service");
        assert_eq!(own("/a/b"), "/a/b");
        assert_eq!(own("/"), "/");
        let container = format!("/kubepods/pod{UID}/{ID}");
        assert_eq!(owner_of(&format!("{container}/init.scope/x")).1, container);
        assert_eq!(owner_of(&format!("/kubepods/pod{UID}/sandbox")).1, format!("/kubepods/pod{UID}"));
    }
}
