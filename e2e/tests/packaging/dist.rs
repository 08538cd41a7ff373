//! What `packaging/build` made: static, it serves, and so does the image of it.
//!
//! Ignored by default, because the build takes minutes:
//!
//! ```text
//! packaging/build
//! ORLOP_PACKAGING_DIST=$PWD/dist cargo test -p e2e --test packaging -- --ignored
//! ```
//!
//! It needs qemu-aarch64-static (Debian package qemu-user-static) and buildah.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::kube::etcdctl::Etcdctl;
use e2e::kube::http::Client;
use e2e::kube::proc::{Process, conclude, free_port};
use e2e::kube::{Result, ensure, fail};

use crate::{repo, run};

/// Longest start, under emulation too.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Architectures by their name in images and their number in an ELF header.
const ARCHITECTURES: [(&str, u16); 2] = [("amd64", 62), ("arm64", 183)];
const PROGRAMS: [&str; 3] = ["orlop", "etcdctl", "etcdutl"];

fn dist() -> Result<PathBuf> {
    match std::env::var_os("ORLOP_PACKAGING_DIST") {
        Some(dir) => Ok(PathBuf::from(dir)),
        None => fail("ORLOP_PACKAGING_DIST is to name the output of packaging/build"),
    }
}

/// Checks that a program is for a machine and needs neither an interpreter nor a library.
fn is_static(program: &Path, machine: u16) -> Result<()> {
    let bytes = std::fs::read(program)?;
    let at = |offset: usize, len: usize| -> u64 {
        let bytes = &bytes[offset..offset + len];
        bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    };
    let right = bytes.starts_with(b"\x7fELF\x02\x01") && at(18, 2) == u64::from(machine);
    ensure(right, || {
        format!("{}: another machine's", program.display())
    })?;
    let (headers, size, count) = (at(32, 8) as usize, at(54, 2) as usize, at(56, 2) as usize);
    // PT_DYNAMIC and PT_INTERP.
    let dynamic = (0..count).any(|n| [2, 3].contains(&at(headers + n * size, 4)));
    ensure(!dynamic, || format!("{} is not static", program.display()))?;
    println!("{}: {} bytes", program.display(), bytes.len());
    Ok(())
}

#[test]
#[ignore = "needs the output of packaging/build"]
fn binaries_are_static() {
    let dist = dist().unwrap();
    for (architecture, machine) in ARCHITECTURES {
        let dir = dist.join(format!("linux-{architecture}"));
        for program in PROGRAMS {
            is_static(&dir.join(program), machine).unwrap();
        }
        let fleet = dist.join(format!("fleet-linux-{architecture}/orlop-fleet"));
        is_static(&fleet, machine).unwrap();
        assert_eq!(
            std::fs::read_link(dir.join("etcd")).unwrap(),
            Path::new("orlop")
        );
    }
    run(Command::new("sha256sum")
        .args(["--check", "SHA256SUMS"])
        .current_dir(dist))
    .unwrap();
}

#[tokio::test]
#[ignore = "needs the output of packaging/build"]
async fn binaries_serve() {
    let dist = dist().unwrap();
    for (architecture, emulator) in [("amd64", None), ("arm64", Some("qemu-aarch64-static"))] {
        let dir = tempfile::tempdir().unwrap();
        let program = dist.join(format!("linux-{architecture}/etcd"));
        let command = match emulator {
            None => Command::new(program),
            Some(emulator) => {
                let mut command = Command::new(emulator);
                // qemu opens the link; orlop is to see the name `etcd`.
                command.args(["-0", "etcd"]).arg(program);
                command
            }
        };
        let data = dir.path().join("data");
        let result = serves(dir.path(), command, &data).await;
        conclude(dir, result);
    }
}

/// Starts `command` as etcd with its data in `data`, writes, restarts, and reads.
async fn serves(dir: &Path, mut command: Command, data: &Path) -> Result<()> {
    let port = free_port()?;
    let url = format!("http://127.0.0.1:{port}");
    command
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--listen-client-urls={url}"))
        .arg(format!("--advertise-client-urls={url}"));
    let etcdctl = Etcdctl::new(&url, None)?;
    for start in 1..=2 {
        let began = Instant::now();
        let mut process = Process::start("etcd", dir, &mut command)?;
        while !matches!(Client::plain(port).page("/readyz").await, Ok((200, _))) {
            process.check_running()?;
            ensure(began.elapsed() < READY_TIMEOUT, || process.tail())?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let found = etcdctl.ok(&["get", "key", "--print-value-only"])?;
        ensure(found.is_empty() == (start == 1), || {
            format!("start {start}: {found:?}")
        })?;
        etcdctl.ok(&["put", "key", "kept"])?;
        process.terminate(Duration::from_secs(20))?;
    }
    Ok(())
}

/// Builds the image for both platforms, and runs the one of this machine with kubeadm's
/// mounts. buildah's chroot isolation needs neither a daemon nor namespaces.
#[tokio::test]
#[ignore = "needs the output of packaging/build"]
async fn the_image_serves() {
    let dir = tempfile::tempdir().unwrap();
    let result = image(dir.path()).await;
    conclude(dir, result);
}

async fn image(dir: &Path) -> Result<()> {
    let buildah = || {
        let mut command = Command::new("buildah");
        command
            .args(["--storage-driver", "vfs", "--root"])
            .arg(dir.join("storage"))
            .arg("--runroot")
            .arg(dir.join("run"));
        command
    };
    run(buildah()
        .args(["build", "--isolation", "chroot"])
        .args(["--platform", "linux/amd64,linux/arm64"])
        .args(["--manifest", "localhost/orlop/etcd:test", "--file"])
        .arg(repo("packaging/Containerfile"))
        .arg(dist()?))?;
    for (architecture, machine) in ARCHITECTURES {
        let container = run(buildah()
            .args(["from", "--pull-never", "--arch", architecture])
            .arg("localhost/orlop/etcd:test"))?;
        let root = run(buildah().arg("mount").arg(container.trim()))?;
        let bin = Path::new(root.trim()).join("usr/local/bin");
        for program in PROGRAMS {
            is_static(&bin.join(program), machine)?;
        }
        if architecture != "amd64" {
            continue;
        }
        for (program, says) in [
            ("etcd", "etcd Version: 3.7.3"),
            ("etcdctl", "etcdctl version: 3.7.3"),
            ("etcdutl", "etcdutl version: 3.7.3"),
        ] {
            let argument = if program == "etcd" {
                "--version"
            } else {
                "version"
            };
            let said = run(buildah().args(["run", "--isolation", "chroot"]).args([
                container.trim(),
                program,
                argument,
            ]))?;
            ensure(said.contains(says), || said)?;
        }
        let data = dir.join("data");
        std::fs::create_dir(&data)?;
        let mut etcd = buildah();
        etcd.args(["run", "--isolation", "chroot", "--volume"])
            .arg(format!("{}:/var/lib/etcd", data.display()))
            .args([container.trim(), "etcd"]);
        serves(dir, etcd, Path::new("/var/lib/etcd")).await?;
        ensure(data.join("format").is_file(), || {
            "the data is not on the volume".into()
        })?;
    }
    Ok(())
}
