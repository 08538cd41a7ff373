//! Who else may get at the data directory.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The bits of the group and of everyone else.
const OTHERS: u32 = 0o077;
/// Their right to add, remove and rename files.
const OTHERS_WRITE: u32 = 0o022;

/// What to say about the permissions of a data directory, if others than its owner have any.
/// A new one is made with none; one that was there is left as it is, since volumes and groups
/// that the operator has set up depend on it.
pub(crate) fn warning(data_dir: &Path) -> Option<String> {
    let mode = std::fs::metadata(data_dir).ok()?.permissions().mode() & 0o777;
    let may = match mode {
        mode if mode & OTHERS_WRITE != 0 => {
            "others than its owner may remove, replace and add files in it"
        }
        mode if mode & OTHERS != 0 => "others than its owner may look into it",
        _ => return None,
    };
    let dir = data_dir.display();
    Some(format!(
        "the data directory has mode {mode:04o}: {may}; make it the server's alone: chmod 700 {dir}"
    ))
}

#[cfg(test)]
mod tests {
    use super::warning;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn others_rights_are_told_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let with = |mode| {
            std::fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            warning(dir.path())
        };
        assert_eq!(with(0o700), None);
        assert!(with(0o750).unwrap().contains("may look into it"));
        for open in [0o777, 0o702, 0o1777, 0o720] {
            let told = with(open).unwrap();
            assert!(told.contains("may remove, replace"), "{told}");
            assert!(told.contains("chmod 700"), "{told}");
        }
    }
}
