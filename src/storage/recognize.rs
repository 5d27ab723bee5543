//! Recognizes files of another kind than their name says, by their first bytes.

use super::Problem;
use std::ffi::OsStr;
use std::path::Path;

/// Number of bytes that [`recognize`] needs.
pub(super) const PREFIX: u64 = 256;

/// The kind of a file, and the next step for the user.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recognized {
    pub(super) found: &'static str,
    pub(super) help: &'static str,
}

/// Recognizes files that users often give in place of a tensor file.
///
/// Call it only after reading the file as a tensor file failed: the first two bytes of a gzip or pickle file can also be the header
/// length of a valid safetensors file.
pub(super) fn recognize(prefix: &[u8]) -> Option<Recognized> {
    const AGAIN: &str = "download it again";
    const UNPACK: &str = "unpack it first";
    const CONVERT: &str = "save the tensors as safetensors";
    let text = prefix.trim_ascii_start();
    let html = |tag: &[u8]| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    let (found, help) = if prefix.starts_with(b"version https://git-lfs") {
        ("a Git LFS pointer in place of the file", "run `git lfs pull` in its repository")
    } else if html(b"<!doctype html") || html(b"<html") {
        ("a web page, perhaps an error page of the download server", AGAIN)
    } else if prefix.starts_with(b"\x93NUMPY") {
        ("a NumPy array", "rename it to end in .npy")
    } else if prefix.len() >= 10 && prefix[6..9] == *b"\0\0{" {
        ("a safetensors file", "rename it to end in .safetensors")
    } else if prefix.starts_with(b"\x1f\x8b") {
        ("a gzip archive", UNPACK)
    } else if prefix.starts_with(b"PK\x03\x04") {
        (
            "a zip archive, such as an .npz file or a PyTorch checkpoint",
            "unpack an .npz file into its .npy files; save a PyTorch checkpoint as safetensors",
        )
    } else if matches!(prefix, [0x80, 2..=5, ..]) {
        ("a Python pickle, which can run arbitrary code when it is loaded", CONVERT)
    } else if prefix.starts_with(b"GGUF") {
        ("a GGUF file", "give the safetensors checkpoint that it was converted from")
    } else if prefix.starts_with(b"\x89HDF") {
        ("an HDF5 file", CONVERT)
    } else if text.starts_with(b"{") {
        ("JSON text", "give the file that contains the tensors, or its folder")
    } else {
        return None;
    };
    Some(Recognized { found, help })
}

/// A problem for a file whose format is known by its name, and is not read. It tells the way out.
pub(crate) fn unread_format(path: &Path) -> Option<Problem> {
    let (what, help) = match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "npz" => (
            "an .npz archive is not read",
            "unpack it into .npy files, which are read: python -m zipfile -e FILE.npz FOLDER",
        ),
        "pt" | "pth" | "bin" | "ckpt" => (
            "a file of PyTorch is not read, because it can run arbitrary code",
            "save its tensors as safetensors in Python: \
             safetensors.torch.save_file(torch.load(FILE, weights_only=True), \"NEW.safetensors\")",
        ),
        "gguf" => ("a GGUF file is not read", "give the safetensors files that it was converted from"),
        _ => return None,
    };
    Some(Problem::data(what).in_file(path).help(help))
}

/// True for the name of a file that macOS adds beside another one on foreign disks: it holds no tensors.
pub(crate) fn is_sidecar(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"._")
}

#[cfg(test)]
mod tests {
    use super::super::shown;
    use super::*;
    use expect_test::expect;

    #[test]
    fn formats_that_are_not_read_have_a_way_out() {
        let names = ["a.npz", "a.pt", "a.PTH", "a.bin", "a.ckpt", "a.gguf"];
        let texts = names.map(|name| shown(&unread_format(Path::new(name)).unwrap().into(), Path::new("-")));
        expect![[r#"
            Data: a.npz: an .npz archive is not read
                help: unpack it into .npy files, which are read: python -m zipfile -e FILE.npz FOLDER
            Data: a.pt: a file of PyTorch is not read, because it can run arbitrary code
                help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
            Data: a.PTH: a file of PyTorch is not read, because it can run arbitrary code
                help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
            Data: a.bin: a file of PyTorch is not read, because it can run arbitrary code
                help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
            Data: a.ckpt: a file of PyTorch is not read, because it can run arbitrary code
                help: save its tensors as safetensors in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), "NEW.safetensors")
            Data: a.gguf: a GGUF file is not read
                help: give the safetensors files that it was converted from
        "#]].assert_eq(&texts.concat());
        assert!(
            ["a.npy", "a.safetensors", "a", "npz"]
                .iter()
                .all(|name| unread_format(Path::new(name)).is_none())
        );
    }

    #[test]
    fn known_kinds_are_recognized() {
        let prefixes = [
            b"version https://git-lfs.github.com/spec/v1\noid sha256:".as_slice(),
            b"\n<!DOCTYPE html><html>",
            b"<HTML><body>403",
            b"\x93NUMPY\x01\x00",
            b"\x02\0\0\0\0\0\0\0{}",
            b"\x1f\x8b\x08\0\0",
            b"PK\x03\x04\x14",
            b"\x80\x02}q\x00.",
            b"\x80\x05\x95",
            b"GGUF\x03",
            b"\x89HDF\r\n",
            b" {\"weight_map\": {",
        ];
        let lines = prefixes.map(|prefix| {
            let Recognized { found, help } = recognize(prefix).unwrap();
            format!("{found}; {help}\n")
        });
        expect![[r#"
            a Git LFS pointer in place of the file; run `git lfs pull` in its repository
            a web page, perhaps an error page of the download server; download it again
            a web page, perhaps an error page of the download server; download it again
            a NumPy array; rename it to end in .npy
            a safetensors file; rename it to end in .safetensors
            a gzip archive; unpack it first
            a zip archive, such as an .npz file or a PyTorch checkpoint; unpack an .npz file into its .npy files; save a PyTorch checkpoint as safetensors
            a Python pickle, which can run arbitrary code when it is loaded; save the tensors as safetensors
            a Python pickle, which can run arbitrary code when it is loaded; save the tensors as safetensors
            a GGUF file; give the safetensors checkpoint that it was converted from
            an HDF5 file; save the tensors as safetensors
            JSON text; give the file that contains the tensors, or its folder
        "#]].assert_eq(&lines.concat());
        assert_eq!(recognize(b""), None);
        assert_eq!(recognize(b"\0\0\0\0\0\0\0\0\0\0"), None);
    }
}
