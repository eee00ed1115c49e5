//! The list of mounts of a process.

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `major:minor`: one file system is one device, however often it is mounted.
    pub device: String,
    /// Where it is mounted.
    pub point: String,
    /// Type.
    pub kind: String,
    /// What was mounted.
    pub source: String,
}

/// The file systems in `mountinfo` (proc(5)) of one of `types` that are written to: one mount per device, the shortest path
/// first of those that `is_seen` takes. An overlay is the root of a container or of the machine: only that of `/` counts.
pub fn mounts(mountinfo: &str, types: &[String], is_seen: impl Fn(&Mount) -> bool) -> Vec<Mount> {
    let mut all: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
    all.retain(|m| types.contains(&m.kind) && (m.kind != "overlay" || m.point == "/"));
    all.sort_by(|a, b| (a.point.len(), &a.point).cmp(&(b.point.len(), &b.point)));
    let mut devices = std::collections::BTreeSet::new();
    // Who is seen is asked for last: it is asked of the disk.
    all.retain(|m| !devices.contains(&m.device) && is_seen(m) && devices.insert(m.device.clone()));
    all
}

/// Numbers of the mounts in a list: no two mounts of a machine have the same, in whatever namespace.
pub fn numbers(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| line.split(' ').next()).filter(|number| !number.is_empty())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`; `None` for what is read-only, or
/// not a line of that form.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (device, _root, point, options) = (left.next()?, left.next()?, left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, source, of_all) = (right.next()?, right.next()?, right.next()?);
    let is_written = |options: &str| options.split(',').any(|option| option == "rw");
    (is_written(options) && is_written(of_all)).then(|| Mount {
        device: device.to_owned(),
        point: unescaped(point),
        kind: kind.to_owned(),
        source: unescaped(source),
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescaped(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
27 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw,discard
28 27 0:5 / /proc rw - proc proc rw
29 27 259:9 / /boot ro,relatime - ext4 /dev/boot rw
30 27 7:1 / /snap/x rw - squashfs /dev/loop1 ro
31 27 0:40 / /run rw,nosuid - tmpfs tmpfs rw,size=1k
32 27 259:1 /var /var/bind rw - ext4 /dev/root rw,discard
33 27 0:41 / /mnt/with\\040space rw - xfs /dev/sdb1 rw
34 27 0:50 / /var/lib/containers/merged rw - overlay overlay rw
35 27 0:51 / /mnt/away rw - nfs4 server:/x rw
no line
";

    #[test]
    fn what_is_written_to_is_listed_once() {
        let types = super::super::FilesystemConfig::default().types;
        let found = mounts(LIST, &types, |_| true);
        let points: Vec<&str> = found.iter().map(|m| m.point.as_str()).collect();
        assert_eq!(points, ["/", "/run", "/mnt/with space"]);
        assert_eq!((found[0].kind.as_str(), found[0].source.as_str()), ("ext4", "/dev/root"));
        // Where the first mount of a device is not seen, another one of it may be.
        let found = mounts(LIST, &types, |m| m.point != "/");
        assert_eq!(
            found.iter().map(|m| m.point.as_str()).collect::<Vec<_>>(),
            ["/run", "/var/bind", "/mnt/with space"]
        );
    }

    #[test]
    fn the_overlay_of_the_root_is_a_file_system_of_the_machine() {
        let list = "1 0 0:50 / / rw - overlay overlay rw\n2 1 0:51 / /x rw - overlay overlay rw\n";
        assert_eq!(mounts(list, &["overlay".to_owned()], |_| true).len(), 1);
    }
}
