//! An image made by hand, so that a real machine needs no registry; and a registry that has nothing.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::binaries::program;

/// Its name; the shell and the tools of busybox are in it.
pub const IMAGE: &str = "box.example.org/box:1";

/// Writes it as an archive that `ctr images import` takes.
pub fn archive(dir: &Path) -> PathBuf {
    let dir = dir.join("image");
    let bin = dir.join("layer/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(dir.join("layer/tmp")).unwrap();
    std::fs::copy(program("busybox"), bin.join("busybox")).unwrap();
    for tool in ["sh", "sleep", "dd", "httpd", "echo"] {
        std::os::unix::fs::symlink("busybox", bin.join(tool)).unwrap();
    }
    tar(&dir.join("layer.tar"), &dir.join("layer"), &["."]);
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({"architecture": architecture, "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "1000000"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&dir.join("layer.tar")))]}});
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    std::fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = dir.join("image.tar");
    tar(&archive, &dir, &["manifest.json", "config.json", "layer.tar"]);
    archive
}

fn tar(file: &Path, dir: &Path, names: &[&str]) {
    let done = Command::new("tar").arg("-cf").arg(file).arg("-C").arg(dir).args(names).status().unwrap();
    assert!(done.success(), "tar of {}: {done}", dir.display());
}

fn sha256(file: &Path) -> String {
    let said = Command::new("sha256sum").arg(file).output().unwrap();
    assert!(said.status.success(), "sha256sum: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8_lossy(&said.stdout).split(' ').next().unwrap().to_owned()
}

/// Answers as a registry that has no image; gives its address. It ends with the test.
pub fn empty_registry() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // One request without a body fits into one read.
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ =
                stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    address
}
