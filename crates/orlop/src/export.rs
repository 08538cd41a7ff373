//! `orlop export`: a snapshot file, and how to start an etcd from it.

use crate::failure::{Failure, say};
use crate::import_members::TlsArgs;
use crate::import_source::{Source, new_private_file, private_file};
use crate::{snapshot_feed, snapshot_restore};
use engine::Engine;
use snapshot::{Encoder, Origin, Snapshot, StorageVersion, human_bytes, write_file};
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// etcd's raft term after a lone member's first election, as orlop reports it.
const RAFT_TERM: u64 = 2;
/// Versions collected at a time.
const STEP: usize = 65536;

/// Arguments of `orlop export`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A running server, https://HOST:2379.
    #[arg(long, value_name = "URL", required_unless_present = "data_dir")]
    endpoint: Option<String>,
    /// A stopped server's data directory instead.
    #[arg(long, conflicts_with = "endpoint")]
    data_dir: Option<PathBuf>,
    /// The file to write; one that exists is replaced once the new one is complete.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The etcd that shall start from it: 3.5, 3.6 or 3.7. An etcd refuses the file of a
    /// later version.
    #[arg(long, default_value = "3.7")]
    etcd_version: StorageVersion,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Exit code 0: the file is complete, verified and on disk; 1: it is not there.
pub(crate) fn run(args: &Args) -> ExitCode {
    match export(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop export: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A file that becomes the output, or is removed.
struct Partial(PathBuf);

impl Partial {
    /// Makes it, under a name that no other export has.
    fn beside(output: &Path) -> Result<Self, Failure> {
        let mut name = output.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(name);
        new_private_file(&path).map_err(Failure::io("create", &path))?;
        Ok(Partial(path))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

fn export(args: &Args) -> Result<(), Failure> {
    let partial = Partial::beside(&args.output)?;
    match (&args.endpoint, &args.data_dir) {
        (Some(endpoint), _) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Failure::io("start a runtime for", &args.output))?;
            runtime.block_on(async {
                let (source, _) = Source::connect(endpoint, &args.tls).await?;
                source.save(&partial.0, |_, _| ()).await
            })?;
            let file = Snapshot::open(&partial.0)?;
            if !file.has_hash() {
                return Err(Failure::Refused(
                    "the server's snapshot ended before its SHA-256; try again".to_owned(),
                ));
            }
            if args.etcd_version != StorageVersion::default() {
                rewrite(&file, &partial.0, args.etcd_version)?;
            }
        }
        (None, Some(dir)) => {
            let read = snapshot_feed::read(dir)?;
            let origin = Origin {
                member_id: read.report.identity.member_id,
                raft_term: RAFT_TERM,
                raft_index: read.report.last_lsn,
                storage_version: args.etcd_version,
            };
            encode(&read.engine, &origin, &partial.0)?;
        }
        // clap asks for one of them.
        (None, None) => return Ok(()),
    }
    let file = Snapshot::open(&partial.0)?;
    file.verify_hash()?;
    file.verify_pages()?;
    let status = file.status()?;
    drop(file);
    fs::rename(&partial.0, &args.output).map_err(Failure::io("rename", &partial.0))?;
    sync_parent(&args.output)?;
    print_next(args, &status);
    Ok(())
}

/// Makes a rename last: syncs the directory that `path` is in.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Failure> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    fs::File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(Failure::io("sync", parent))
}

/// The same contents, as another version of etcd wants them.
fn rewrite(file: &Snapshot, path: &Path, version: StorageVersion) -> Result<(), Failure> {
    let (restore, loaded) = snapshot_restore::load(file, true)?;
    let engine = restore.finish();
    let origin = Origin {
        member_id: 1,
        raft_term: loaded.contents.term,
        raft_index: loaded.contents.consistent_index,
        storage_version: version,
    };
    encode(&engine, &origin, path)
}

fn encode(engine: &Engine<()>, origin: &Origin, path: &Path) -> Result<(), Failure> {
    let (mut cursor, head) = engine.export_open();
    while !engine.versions_step(&mut cursor, STEP) {}
    let versions = cursor.finish(&mut || ());
    let encoder = Encoder::new(origin, &head, versions)?;
    // The file that is rewritten may still be open; its name goes to a new one.
    let _ = fs::remove_file(path);
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::new(private_file(path)?);
        write_file(encoder, &mut out)?;
        out.flush()?;
        out.get_ref().sync_all()
    };
    write().map_err(Failure::io("write", path))
}

fn print_next(args: &Args, status: &snapshot::Status) {
    let file = args.output.display();
    say!(
        "wrote {file}: {}, {} keys, revision {}, hash {:x}; SHA-256 and every page verified",
        human_bytes(status.total_bytes),
        status.total_keys,
        status.revision,
        status.hash
    );
    say!();
    say!("To start an etcd {} from it:", args.etcd_version);
    say!("  etcdutl snapshot restore {file} --data-dir /var/lib/etcd --name default \\");
    say!("    --initial-cluster default=http://127.0.0.1:2380 \\");
    say!("    --initial-advertise-peer-urls http://127.0.0.1:2380");
    say!("  etcd --data-dir /var/lib/etcd --name default \\");
    say!(
        "    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \\"
    );
    say!(
        "    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379"
    );
    say!("Revisions stay as they are. If anything was written after this snapshot and is given up");
    say!("by going back to it, add to the first line: --bump-revision 1000000000 --mark-compacted");
}
