//! What a file is that is not what its name says, judged from its first bytes.

/// How many bytes [`recognize`] wants to see.
pub(super) const PREFIX: u64 = 256;

/// What a file is known to be, and how to come by the right one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recognized {
    pub(super) found: &'static str,
    pub(super) help: &'static str,
}

/// Recognizes what is often met in place of a tensor file.
///
/// To be asked after the file was found to be nothing else: two bytes of a gzip or pickle file can also be
/// the header length of a sound safetensors file.
pub(super) fn recognize(prefix: &[u8]) -> Option<Recognized> {
    const AGAIN: &str = "download it again";
    const UNPACK: &str = "unpack it first";
    const CONVERT: &str = "save the tensors as safetensors";
    let text = prefix.trim_ascii_start();
    let html = |tag: &[u8]| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    let (found, help) = if prefix.starts_with(b"version https://git-lfs") {
        ("a Git LFS pointer, not the file it stands for", "run `git lfs pull` in its repository")
    } else if html(b"<!doctype html") || html(b"<html") {
        ("a web page, perhaps the message of a server that refused the download", AGAIN)
    } else if prefix.starts_with(b"\x93NUMPY") {
        ("a NumPy array", "give it the extension .npy")
    } else if prefix.len() >= 10 && prefix[6..9] == *b"\0\0{" {
        ("a safetensors file", "give it the extension .safetensors")
    } else if prefix.starts_with(b"\x1f\x8b") {
        ("a gzip archive", UNPACK)
    } else if prefix.starts_with(b"PK\x03\x04") {
        (
            "a zip archive, such as an .npz file or a PyTorch checkpoint",
            "unpack an .npz file into its .npy files; save a PyTorch checkpoint as safetensors",
        )
    } else if matches!(prefix, [0x80, 2..=5, ..]) {
        ("a Python pickle, which could run any code when it is loaded", CONVERT)
    } else if prefix.starts_with(b"GGUF") {
        ("a GGUF file", "give the safetensors checkpoint that it was made from")
    } else if prefix.starts_with(b"\x89HDF") {
        ("an HDF5 file", CONVERT)
    } else if text.starts_with(b"{") {
        ("JSON text", "give the file that holds the tensors, or its folder")
    } else {
        return None;
    };
    Some(Recognized { found, help })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_known_stranger_is_recognized() {
        for (prefix, found) in [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:".as_slice(), "Git LFS pointer"),
            (b"\n<!DOCTYPE html><html>", "web page"),
            (b"<HTML><body>403", "web page"),
            (b"\x93NUMPY\x01\x00", "NumPy"),
            (b"\x02\0\0\0\0\0\0\0{}", "safetensors"),
            (b"\x1f\x8b\x08\0\0", "gzip"),
            (b"PK\x03\x04\x14", "zip"),
            (b"\x80\x02}q\x00.", "pickle"),
            (b"\x80\x05\x95", "pickle"),
            (b"GGUF\x03", "GGUF"),
            (b"\x89HDF\r\n", "HDF5"),
            (b" {\"weight_map\": {", "JSON"),
        ] {
            let recognized = recognize(prefix).expect(found);
            assert!(recognized.found.contains(found), "{recognized:?}");
        }
        assert_eq!(recognize(b""), None);
        assert_eq!(recognize(b"\0\0\0\0\0\0\0\0\0\0"), None);
    }
}
