//! Compiles the kernel programs with clang. They need no headers of the running kernel: what they read is resolved when
//! they are loaded.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, exit},
};

const SOURCE: &str = "src/kernel/tapio.bpf.c";
/// Tried in order when `TAPIO_CLANG` is not set. Before 12 clang lacks relocations the programs use.
const CLANG_NAMES: [&str; 9] =
    ["clang", "clang-20", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14", "clang-13"];
const INSTALL_HINT: &str = "install them with `apt-get install clang libbpf-dev`, `dnf install clang libbpf-devel` or \
                            `apk add clang libbpf-dev`";

fn main() {
    println!("cargo:rerun-if-changed=src/kernel");
    println!("cargo:rerun-if-changed=src/layout.h");
    println!("cargo:rerun-if-env-changed=TAPIO_CLANG");
    println!("cargo:rerun-if-env-changed=TAPIO_BPF_INCLUDE");

    let clang = find_clang();
    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("tapio.bpf.o");
    compile(&clang, &object);
    println!("cargo:rustc-env=TAPIO_BPF_OBJECT={}", object.display());
}

fn find_clang() -> String {
    if let Ok(clang) = env::var("TAPIO_CLANG") {
        return clang;
    }
    let found = CLANG_NAMES
        .iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success()));
    match found {
        Some(name) => (*name).to_owned(),
        None => fail(&format!(
            "no clang found, which compiles the kernel programs, and its headers are in libbpf: {INSTALL_HINT}, \
             or name a clang in TAPIO_CLANG"
        )),
    }
}

fn compile(clang: &str, object: &Path) {
    let mut command = Command::new(clang);
    command.args([
        "-target",
        &target(),
        "-mcpu=v3",
        "-g",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-c",
        SOURCE,
    ]);
    // Keeps the place of the checkout out of the debug information.
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    command.arg(format!("-fdebug-prefix-map={root}=."));
    if let Ok(include) = env::var("TAPIO_BPF_INCLUDE") {
        command.arg("-I").arg(include);
    }
    let output = match command.arg("-o").arg(object).output() {
        Ok(output) => output,
        Err(error) => fail(&format!("cannot run {clang}: {error}; {INSTALL_HINT}")),
    };
    if output.status.success() {
        return;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("bpf/bpf_helpers.h") && said.contains("file not found") {
        fail(&format!(
            "the libbpf headers are missing: {INSTALL_HINT}, or name their folder in TAPIO_BPF_INCLUDE"
        ));
    }
    fail(&format!("{clang} could not compile {SOURCE}:\n{said}"));
}

/// The BPF target in the byte order of the machine the crate is built for.
fn target() -> String {
    match env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() {
        Ok("big") => "bpfeb".to_owned(),
        _ => "bpfel".to_owned(),
    }
}

fn fail(message: &str) -> ! {
    eprintln!("tapio-bpf: {message}");
    exit(1);
}
