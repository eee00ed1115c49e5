//! Certificates of one control plane, made with the `openssl` program: an authority, a server, and clients.

use std::path::{Path, PathBuf};
use std::process::Command;

const SECTIONS: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = unused
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign, digitalSignature
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = IP:127.0.0.1, DNS:localhost, DNS:kubernetes, DNS:kubernetes.default.svc
";

/// An authority and what it has signed, in a directory.
pub struct Certs {
    dir: PathBuf,
}

impl Certs {
    /// Makes an authority, and the key of service accounts.
    pub fn new(dir: &Path) -> Self {
        let certs = Self { dir: dir.to_owned() };
        std::fs::write(certs.file("sections"), SECTIONS).unwrap();
        certs.key("authority");
        certs.openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            "authority.key",
            "-out",
            "authority.crt",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
            "-config",
            "sections",
            "-extensions",
            "authority",
        ]);
        certs.key("accounts");
        certs.openssl(&["pkey", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"]);
        certs
    }

    /// Signs a certificate for `subject`, such as `/O=system:masters/CN=admin`, in `name`.crt and `name`.key.
    pub fn sign(&self, name: &str, subject: &str) {
        self.key(name);
        let [key, request, signed] = ["key", "csr", "crt"].map(|suffix| format!("{name}.{suffix}"));
        self.openssl(&[
            "req", "-new", "-key", &key, "-out", &request, "-subj", subject, "-config", "sections",
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "authority.crt",
            "-CAkey",
            "authority.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "sections",
            "-extensions",
            "leaf",
            "-out",
            &signed,
        ]);
    }

    /// Path of a file, such as `authority.crt`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The same, as text for a flag.
    pub fn path(&self, name: &str) -> String {
        self.file(name).display().to_string()
    }

    fn key(&self, name: &str) {
        let file = format!("{name}.key");
        self.openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &file]);
    }

    fn openssl(&self, args: &[&str]) {
        let output = Command::new("openssl").args(args).current_dir(&self.dir).output();
        let output = output.expect("openssl is missing: apt-get install openssl");
        assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
