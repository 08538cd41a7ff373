//! Container images from programs of this machine, for `ctr images import`: an archive as
//! `docker save` writes it, each image of one layer.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::kube::proc::{output, run};
use crate::kube::{Result, ensure};

/// How long `ldd` may take.
const LDD_LIMIT: Duration = Duration::from_secs(20);

/// An archive in the making.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
    manifest: Vec<serde_json::Value>,
}

/// A layer of an archive, which several images may have.
#[derive(Debug)]
pub struct Layer {
    file: String,
    digest: String,
}

impl Archive {
    /// An empty one, with its parts in `dir`, which is made.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            manifest: Vec::new(),
        })
    }

    /// Makes a layer of programs, each at a path in the image. The shared libraries that they
    /// name come with them.
    ///
    /// # Errors
    /// If a program cannot be read, or `tar` fails.
    pub fn layer(&self, name: &str, programs: &[(&str, PathBuf)]) -> Result<Layer> {
        let mut files: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        for (path, program) in programs {
            files.insert(PathBuf::from(path), program.clone());
            for library in libraries(program)? {
                files.insert(library.clone(), library);
            }
        }
        // Links to the files; tar takes what they point to.
        let root = self.dir.join(format!("{name}.root"));
        fs::create_dir_all(root.join("tmp"))?;
        for (path, file) in files {
            let path = root.join(path.strip_prefix("/").unwrap_or(&path));
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            symlink(fs::canonicalize(file)?, path)?;
        }
        let file = format!("{name}.tar");
        let tar = ["--dereference", "--owner=0", "--group=0", "--numeric-owner"];
        run(Command::new("tar")
            .args(tar)
            .arg("--create")
            .arg("--file")
            .arg(self.dir.join(&file))
            .arg("--directory")
            .arg(&root)
            .arg("."))?;
        fs::remove_dir_all(&root)?;
        let digest = sha256(&self.dir.join(&file))?;
        Ok(Layer { file, digest })
    }

    /// Adds an image: its name, its layer, and what it runs (empty: what the pod says).
    ///
    /// # Errors
    /// If its configuration cannot be written.
    pub fn image(&mut self, name: &str, layer: &Layer, entrypoint: &[&str]) -> Result<()> {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": { "Env": [format!("PATH={path}")], "Entrypoint": entrypoint },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] }
        });
        let file = format!("config-{}.json", self.manifest.len());
        fs::write(self.dir.join(&file), serde_json::to_vec(&config)?)?;
        self.manifest
            .push(json!({ "Config": file, "RepoTags": [name], "Layers": [layer.file] }));
        Ok(())
    }

    /// Writes the archive to `to` and removes its parts.
    ///
    /// # Errors
    /// If that fails.
    pub fn finish(self, to: &Path) -> Result<()> {
        fs::write(
            self.dir.join("manifest.json"),
            serde_json::to_vec(&self.manifest)?,
        )?;
        run(Command::new("tar")
            .arg("--create")
            .arg("--file")
            .arg(to)
            .arg("--directory")
            .arg(&self.dir)
            .arg("."))?;
        fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

/// Files that the loader brings to `program`, itself included; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = output(Command::new("ldd").arg(program), "", LDD_LIMIT)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let none = String::from_utf8_lossy(&output.stderr).contains("not a dynamic executable")
        || text.contains("statically linked");
    ensure(output.status.success() || none, || {
        format!("ldd {}: {text}", program.display())
    })?;
    ensure(!text.contains("not found"), || text.clone())?;
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

fn sha256(file: &Path) -> Result<String> {
    let text = run(Command::new("sha256sum").arg("--binary").arg(file))?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}
