//! The operating system's file system.

use crate::support::*;
use files::FileSystem;
use files::real::RealFs;
use journal::{Journal, OpenError, SnapshotWriter, check};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn open(fs: RealFs, dir: &Path) -> Result<Server, OpenError> {
    let mut store = Store::new();
    let (journal, _) = Journal::open(Arc::new(fs), dir, options(), &mut store)?;
    Ok(Server { journal, store })
}

#[test]
fn a_directory_is_made_written_locked_and_read_back() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/default.orlop");
    let mut server = open(RealFs::new(), &dir).unwrap();
    let allocator = server.journal.allocator();
    let thread = std::thread::spawn(move || allocator.run(|_| ()));
    for n in 0..100u8 {
        server.put(&format!("p{n}"), &[n; 3000]);
    }
    let error = open(RealFs::new(), &dir).err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
    assert!(matches!(
        check(Arc::new(RealFs::new()), &dir, None),
        Err(OpenError::Locked { .. })
    ));

    let fs: Arc<dyn FileSystem> = Arc::new(RealFs::new());
    let at = server.journal.snapshot_position(|| ()).unwrap().0;
    let meta = engine::record::SnapshotMeta {
        revision: server.store.revision,
        compact_revision: -1,
    };
    let mut writer = SnapshotWriter::create(fs.clone(), &dir, meta, at).unwrap();
    items(&server.store)
        .iter()
        .for_each(|item| writer.push(item).unwrap());
    writer.finish().unwrap();
    assert!(server.journal.allocator().retire(at).unwrap().segments > 2);
    server.put("plast", b"x");
    let expected = server.store.records.clone();
    server.close().unwrap();
    thread.join().unwrap();

    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("log")), 0o700);
    assert_eq!(mode(&dir.join("format")), 0o600);
    assert!(dir.join("member").is_file());
    let report = check(fs, &dir, None).unwrap();
    assert!(report.closed, "{report}");
    assert_eq!(open(RealFs::new(), &dir).unwrap().store.records, expected);
}

#[test]
fn a_sync_delay_delays_syncs() {
    let parent = tempfile::tempdir().unwrap();
    let fs = RealFs::new().with_sync_delay(Duration::from_millis(30));
    let mut server = open(fs, parent.path()).unwrap();
    let began = Instant::now();
    let info = server.put("p", b"x");
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert!(info.sync_us >= 30_000);
}

#[test]
fn file_systems_that_forget_get_a_warning() {
    // /dev/shm is tmpfs wherever these tests run; /proc is neither disk nor in the list.
    let warning = files::real::fs_warning(Path::new("/dev/shm/not/there/yet")).unwrap();
    assert!(warning.contains("tmpfs"), "{warning}");
    assert_eq!(files::real::fs_warning(Path::new("/proc")), None);
}
