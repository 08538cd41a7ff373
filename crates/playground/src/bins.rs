//! The pinned programs (etcd, Kubernetes, KWOK): what they are built from, where they are
//! cached, and how they are built.
//!
//! The Go modules in `e2e/go` are part of this crate's own binary, so that a bare `orlop`
//! can build what it needs on any machine with Go. Tests, `e2e/build-bins`, the playground
//! and the benchmark share one cache.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::digest;

use crate::{Result, ensure, fail};

/// Environment variable that names the cache's directory.
pub const CACHE_VARIABLE: &str = "ORLOP_E2E_CACHE";
/// Environment variable with the longest wait for another run's build, in seconds.
pub const LOCK_WAIT_VARIABLE: &str = "ORLOP_E2E_LOCK_WAIT_S";
/// Longest wait for another run that builds the same set.
const LOCK_WAIT: Duration = Duration::from_secs(3600);
/// Lines of a failed command that are shown.
const ERROR_LINES: usize = 15;
const INSTALL_GO: &str = "Install Go from https://go.dev/dl/, or a Debian package that is new \
     enough (apt-cache policy golang-go; on a stable release look in its backports).";

/// Programs that are built from one Go module.
#[derive(Debug)]
pub struct Set {
    /// Its name, as in `e2e/go`.
    pub name: &'static str,
    /// What is in it, for a person.
    pub summary: &'static str,
    go_mod: &'static str,
    go_sum: &'static str,
}

macro_rules! set {
    ($name:literal, $summary:literal) => {
        Set {
            name: $name,
            summary: $summary,
            go_mod: include_str!(concat!("../../../e2e/go/", $name, "/go.mod")),
            go_sum: include_str!(concat!("../../../e2e/go/", $name, "/go.sum")),
        }
    };
}

/// All sets.
pub static SETS: [Set; 10] = [
    set!("etcd", "etcd, etcdctl, etcdutl 3.7.3"),
    set!("etcd-3.5", "etcd, etcdutl 3.5.35"),
    set!("etcd-3.6", "etcd, etcdutl 3.6.16"),
    set!(
        "etcd-benchmark",
        "benchmark, the load tool of etcd's repository, 3.6.8"
    ),
    set!("bbolt", "bbolt 1.5.0, the tool of etcd 3.7's file format"),
    set!(
        "kube-1.37",
        "kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, kubeadm 1.37.1"
    ),
    set!(
        "kube-1.30",
        "kube-apiserver, kube-controller-manager, kube-scheduler 1.30.14"
    ),
    set!("node-1.37", "kubelet, kube-proxy 1.37.1"),
    set!("coredns", "coredns 1.14.6, as kubeadm 1.37.1 asks for"),
    set!("kwok", "kwok 0.8.0"),
];

/// The set called `name`.
///
/// # Errors
/// If there is none.
pub fn set(name: &str) -> Result<&'static Set> {
    SETS.iter().find(|set| set.name == name).map_or_else(
        || {
            let names: Vec<_> = SETS.iter().map(|set| set.name).collect();
            fail(format!(
                "no set of programs is called `{name}`: there are {}",
                names.join(", ")
            ))
        },
        Ok,
    )
}

/// Where the programs are cached: `$ORLOP_E2E_CACHE`, or `orlop-e2e` below
/// `$XDG_CACHE_HOME` or `~/.cache`.
///
/// # Errors
/// If no variable says where.
pub fn cache_dir() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = variable(CACHE_VARIABLE) {
        return Ok(PathBuf::from(dir));
    }
    let cache = variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")));
    cache.map_or_else(
        || fail(format!("HOME is not set: set {CACHE_VARIABLE}")),
        |cache| Ok(cache.join("orlop-e2e")),
    )
}

impl Set {
    /// Directory of its programs, whether they are there or not. It depends on all that
    /// decides what is built, except the Go toolchain.
    ///
    /// # Errors
    /// As [`cache_dir`].
    pub fn bin_dir(&self) -> Result<PathBuf> {
        Ok(self.dir()?.join("bin"))
    }

    fn dir(&self) -> Result<PathBuf> {
        let text = format!("{}{}{}\n", self.go_mod, self.go_sum, self.linker_flags());
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let hex: String = hash
            .as_ref()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(cache_dir()?.join(format!("{}-{hex}", self.name)))
    }

    /// Version that its go.mod requires of `module`.
    #[must_use]
    pub fn version_of(&self, module: &str) -> Option<&'static str> {
        self.go_mod.lines().find_map(|line| {
            let line = line.trim();
            let rest = line
                .strip_prefix("require ")
                .unwrap_or(line)
                .strip_prefix(module)?;
            let version = rest.strip_prefix(' ')?.split(' ').next()?;
            version.starts_with('v').then_some(version)
        })
    }

    /// The oldest Go that can build it: its own `go` line.
    fn needs_go(&self) -> &'static str {
        self.go_mod
            .lines()
            .find_map(|line| line.strip_prefix("go "))
            .unwrap_or("1.26")
    }

    /// Main packages: the `tool` lines.
    fn packages(&self) -> Vec<&'static str> {
        let mut packages = Vec::new();
        let mut in_block = false;
        for line in self.go_mod.lines().map(str::trim) {
            match line.strip_prefix("tool ").map(str::trim) {
                Some("(") => in_block = true,
                Some(package) => packages.push(package),
                None if line == ")" => in_block = false,
                None if in_block => packages.push(line),
                None => {}
            }
        }
        packages
    }

    /// Kubernetes' components report a version only if the linker is told it, and kubeadm
    /// and the apiserver act on what they report. The commit is not part of a published
    /// module, so none is claimed.
    fn linker_flags(&self) -> String {
        let mut flags = String::from("-s -w");
        if let Some(version) = self.version_of("k8s.io/kubernetes") {
            let mut parts = version.trim_start_matches('v').split('.');
            let major = parts.next().unwrap_or_default();
            let minor = parts.next().unwrap_or_default();
            for package in [
                "k8s.io/component-base/version",
                "k8s.io/client-go/pkg/version",
            ] {
                flags += &format!(
                    " -X {package}.gitVersion={version} -X {package}.gitMajor={major} \
                     -X {package}.gitMinor={minor} -X {package}.gitTreeState=clean \
                     -X {package}.gitCommit=unknown"
                );
            }
        } else if self.name.starts_with("etcd") {
            flags += " -X go.etcd.io/etcd/api/v3/version.GitSHA=unknown";
        }
        flags
    }

    /// Builds its programs if they are not there, and returns their directory. `say` gets a
    /// line for each step. Two runs at once do not build twice; what an interrupted run
    /// left is removed; what is there is never rebuilt.
    ///
    /// # Errors
    /// If Go is missing or too old, a module cannot be loaded, or a build fails: with what
    /// to do about it.
    pub fn build(&self, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let dir = self.dir()?;
        if dir.is_dir() {
            return Ok(dir.join("bin"));
        }
        self.check_go()?;
        let cache = cache_dir()?;
        fs::create_dir_all(&cache)?;
        let _lock = self.lock(&cache, say)?;
        if !dir.is_dir() {
            self.build_locked(&cache, &dir, say)?;
        }
        Ok(dir.join("bin"))
    }

    fn build_locked(&self, cache: &Path, dir: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
        let prefix = format!(".{}.tmp.", self.name);
        // Nobody else can be building while we hold the lock.
        for entry in fs::read_dir(cache)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let began = Instant::now();
        let work = tempfile::Builder::new().prefix(&prefix).tempdir_in(cache)?;
        let (module, built) = (work.path().join("module"), work.path().join("built"));
        fs::create_dir(&module)?;
        fs::create_dir_all(built.join("bin"))?;
        fs::write(module.join("go.mod"), self.go_mod)?;
        fs::write(module.join("go.sum"), self.go_sum)?;
        say(&format!("{}: downloading modules", self.name));
        self.fetch(&module)?;
        let packages = self.packages();
        for (n, package) in packages.iter().enumerate() {
            let program = binary_name(package);
            say(&format!(
                "{}: building {program} ({} of {}, {} s so far)",
                self.name,
                n + 1,
                packages.len(),
                began.elapsed().as_secs()
            ));
            let target = built.join("bin").join(program);
            let output = go(&module)
                .args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath"])
                .args(["-ldflags", &self.linker_flags(), "-o"])
                .arg(&target)
                .arg(package)
                .env("CGO_ENABLED", "0")
                .env("GOFLAGS", "")
                .output()?;
            ensure(output.status.success(), || {
                format!(
                    "{}: building {package} failed:\n{}",
                    self.name,
                    last_lines(&output)
                )
            })?;
        }
        fs::rename(&built, dir)?;
        say(&format!(
            "{}: built in {} s",
            self.name,
            began.elapsed().as_secs()
        ));
        Ok(())
    }

    fn check_go(&self) -> Result<()> {
        let need = self.needs_go();
        let output = Command::new("go")
            .args(["env", "GOVERSION"])
            .env("GOTOOLCHAIN", "local")
            .stdin(Stdio::null())
            .output();
        let Ok(output) = output else {
            return fail(format!(
                "{} has to be built, which needs Go {need} or newer, and there is no `go` on \
                 PATH. {INSTALL_GO}",
                self.name
            ));
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let have = text.trim().trim_start_matches("go");
        ensure(numbers(have) >= numbers(need), || {
            format!(
                "{} has to be built, which needs Go {need} or newer, and the `go` on PATH is \
                 {have}. {INSTALL_GO}",
                self.name
            )
        })
    }

    fn lock(&self, cache: &Path, say: &mut dyn FnMut(&str)) -> Result<File> {
        let path = cache.join(format!(".{}.lock", self.name));
        let file = File::options().create(true).append(true).open(&path)?;
        let limit = std::env::var(LOCK_WAIT_VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok())
            .map_or(LOCK_WAIT, Duration::from_secs);
        let began = Instant::now();
        let mut said = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(error.into()),
                Err(TryLockError::WouldBlock) => {}
            }
            if !said {
                say(&format!(
                    "{}: waiting for another run that builds it",
                    self.name
                ));
                said = true;
            }
            ensure(began.elapsed() < limit, || {
                format!(
                    "{}: another run holds {} for over {} s",
                    self.name,
                    path.display(),
                    limit.as_secs()
                )
            })?;
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn fetch(&self, module: &Path) -> Result<()> {
        let output = go(module)
            .args(["list", "-deps", "-f", "{{\"\"}}", "tool"])
            .env("GOFLAGS", "-mod=readonly")
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let why = if text.contains("checksum mismatch") || text.contains("SECURITY ERROR") {
            "a downloaded module does not match the pinned checksum: do not use it. If GOPROXY \
             is not the public one, suspect it"
        } else if text.contains("missing go.sum entry") || text.contains("updates to go.mod") {
            "its go.mod and go.sum do not belong together: run `go mod tidy` in e2e/go and \
             commit both"
        } else {
            "its modules could not be loaded. If a download failed: is the module proxy \
             reachable (`go env GOPROXY`)?"
        };
        fail(format!("{}: {why}\n{}", self.name, last_lines(&output)))
    }
}

/// The Go command in `dir`, undisturbed by the user's workspace.
fn go(dir: &Path) -> Command {
    let mut command = Command::new("go");
    command
        .current_dir(dir)
        .env("GOWORK", "off")
        .env("GOTOOLCHAIN", "local")
        .stdin(Stdio::null());
    crate::proc::join_group(&mut command);
    command
}

/// Name of a main package's program: its last path element that is no major version, except
/// that etcd's server is called etcd.
fn binary_name(package: &str) -> &str {
    if package == "go.etcd.io/etcd/server/v3" {
        return "etcd";
    }
    let mut parts = package.rsplit('/');
    let last = parts.next().unwrap_or(package);
    let is_version = last
        .strip_prefix('v')
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if is_version {
        parts.next().unwrap_or(last)
    } else {
        last
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse().ok())
        .collect()
}

fn last_lines(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("go: downloading"))
        .collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_have_the_names_their_users_expect() {
        let names: Vec<_> = SETS
            .iter()
            .flat_map(Set::packages)
            .map(binary_name)
            .collect();
        for name in [
            "etcd",
            "etcdctl",
            "etcdutl",
            "benchmark",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubectl",
            "kubeadm",
            "kubelet",
            "kube-proxy",
            "coredns",
            "kwok",
        ] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
    }

    #[test]
    fn versions_are_read_from_the_modules() {
        let kube = set("kube-1.37").unwrap();
        assert_eq!(kube.version_of("k8s.io/kubernetes"), Some("v1.37.1"));
        assert!(kube.linker_flags().contains("version.gitMinor=37"));
        assert_eq!(
            set("kwok").unwrap().version_of("sigs.k8s.io/kwok"),
            Some("v0.8.0")
        );
        assert!(set("kube-0.1").is_err());
    }

    #[test]
    fn go_versions_compare_by_number() {
        assert!(numbers("1.26.10") > numbers("1.26.9"));
        assert!(numbers("1.26.0") <= numbers("1.26.8"));
        assert!(numbers("1.27rc1") > numbers("1.26.8"));
    }
}
