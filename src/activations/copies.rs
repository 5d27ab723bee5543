//! Detects copies of a file under another name, whose rows or tokens would count twice.

use super::ActivationSet;
use crate::storage::{Problem, Problems, fingerprint, quoted};
use std::collections::BTreeMap;

/// Number of bytes at the end of a file that distinguish most files of the same length.
const END: u64 = 4096;

/// Refuses a file with the same content and the same site as an earlier file. Only files with the same length and the same end are
/// compared by their [`fingerprint`].
pub(super) fn refuse(set: &ActivationSet) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let mut alike: BTreeMap<(u64, Vec<u8>), Vec<usize>> = BTreeMap::new();
    for (index, file) in set.files.iter().enumerate() {
        let end = file.length().min(END);
        if let Some(bytes) = problems.collect(file.read_vec(file.length() - end, end)) {
            alike.entry((file.length(), bytes)).or_default().push(index);
        }
    }
    // Modules with the same input can have equal files at different sites.
    let mut sites_of: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for site in set.sites() {
        site.holders().into_iter().for_each(|(file, _)| sites_of.entry(file).or_default().push(&site.name));
    }
    for group in alike.into_values().filter(|group| group.len() > 1) {
        // The first file with data of a site, of each content.
        let mut seen: BTreeMap<(String, &str), usize> = BTreeMap::new();
        for index in group {
            let file = &set.files[index];
            let Some(content) = problems.collect(fingerprint(file)) else { continue };
            let sites = sites_of.get(&index).map_or(&[][..], Vec::as_slice);
            let known = sites.iter().map(|site| *seen.entry((content.clone(), site)).or_insert(index));
            // All sites are inserted before the earliest copy is known.
            if let Some(copied) = known.min().filter(|earlier| *earlier < index) {
                let copied = quoted(&set.files[copied].path().to_string_lossy());
                let what = format!("its rows would count twice: it is a copy of {copied}");
                problems.push(Problem::data(what).in_file(file.path()).help("remove one of the two"));
            }
        }
    }
    problems.or_ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Access;
    use crate::storage::shown;
    use expect_test::expect;
    use std::fs;
    use std::path::Path;

    /// An array of two columns of these bytes.
    fn write(path: &Path, bytes: &[u8]) {
        write_as(path, "<f4", &format!("({}, 2)", bytes.len() / 8), bytes);
    }

    fn write_as(path: &Path, descr: &str, shape: &str, bytes: &[u8]) {
        let dictionary = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
        let length = (dictionary.len() as u16).to_le_bytes();
        fs::write(path, [b"\x93NUMPY\x01\0", &length[..], dictionary.as_bytes(), bytes].concat()).unwrap();
    }

    #[test]
    fn copies_are_refused_and_similar_files_are_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let open = || ActivationSet::open(&[folder.path().to_owned()], Access::Auto);
        let content = vec![1; 3 * END as usize];
        let mut begins_otherwise = content.clone();
        begins_otherwise[0] = 2;
        write(&folder.path().join("q.0.npy"), &content);
        write(&folder.path().join("q.1.npy"), &begins_otherwise);
        write(&folder.path().join("q.2.npy"), &content[8..]);
        write(&folder.path().join("k.npy"), &content);
        assert!(open().is_ok(), "another module can read the same rows");
        write(&folder.path().join("q.3.npy"), &content);
        let problems = open().unwrap_err();
        expect![[r#"
            Data: q.3.npy: its rows would count twice: it is a copy of "q.0.npy"
                help: remove one of the two
        "#]]
        .assert_eq(&shown(&problems, folder.path()));
    }

    /// Copies of token counts are refused too, for any of the files of a site.
    #[test]
    fn copies_of_counts_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = || ActivationSet::open(&[folder.path().to_owned()], Access::Auto);
        let counts = |name: &str, bytes: &[u8]| write_as(&folder.path().join(name), "|u1", "(3,)", bytes);
        counts("e.0.npy", &[1, 2, 3]);
        counts("e.1.npy", &[1, 2, 4]);
        counts("f.npy", &[1, 2, 4]);
        assert!(open().is_ok(), "another module can read the same tokens");
        counts("e.2.npy", &[1, 2, 4]);
        let problems = open().unwrap_err();
        expect![[r#"
            Data: e.2.npy: its rows would count twice: it is a copy of "e.1.npy"
                help: remove one of the two
        "#]]
        .assert_eq(&shown(&problems, folder.path()));
    }
}
