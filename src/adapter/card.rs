//! The model card `README.md` beside a PEFT adapter.
//!
//! The last line of a card holds a hash of the lines before it. A `README.md` without this line, or with another hash, belongs to the
//! user: it is neither replaced nor removed.

use crate::storage::{Access, Category, Hashing, Problem, Source};
use serde_json::json;
use std::path::Path;

/// The name of the card.
pub const CARD_FILE: &str = "README.md";

const SEAL: &str = "<!-- Written by cntlora, which replaces this file only while it is unchanged: ";
const END: &str = " -->\n";

/// The longest file that is compared with a card, in bytes. Cards are shorter.
const LONGEST: u64 = 1 << 20;

/// A card for the adapter of a model. `body` is Markdown.
pub(super) fn card(base: &str, body: &str) -> String {
    // A JSON string is also one in YAML.
    let base = json!(base);
    let tags = ["lora", "cntlora"].map(|tag| format!("- {tag}\n")).concat();
    let text =
        format!("---\nbase_model: {base}\nlibrary_name: peft\ntags:\n{tags}---\n\n{}\n\n", body.trim_end());
    let hash = hash(&text);
    format!("{text}{SEAL}{hash}{END}")
}

fn hash(text: &str) -> String {
    let mut hashing = Hashing::default();
    hashing.update(text.as_bytes());
    hashing.finish()
}

/// True if nobody changed this text since it was written.
fn is_unchanged(text: &str) -> bool {
    let Some(at) = text.rfind(SEAL) else { return false };
    text[at + SEAL.len()..].strip_suffix(END) == Some(&hash(&text[..at]))
}

/// Who wrote the `README.md` of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    /// There is none.
    Nobody,
    /// This program, and nobody changed it.
    Us,
    /// Somebody else.
    Other,
}

/// Who wrote the `README.md` of a folder.
///
/// # Errors
/// An I/O problem if it is a file that cannot be read.
pub(super) fn author(folder: &Path) -> Result<Author, Problem> {
    let path = folder.join(CARD_FILE);
    match path.symlink_metadata() {
        Ok(found) if found.is_file() && found.len() <= LONGEST => {}
        Ok(_) => return Ok(Author::Other),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Author::Nobody),
        Err(error) => return Err(Problem::io("cannot read", &error).in_file(&path)),
    }
    let source = match Source::open(&path, Access::Read) {
        Err(problem) if problem.category() == Category::Data => return Ok(Author::Other),
        source => source?,
    };
    let bytes = source.read_vec(0, source.length())?;
    let is_ours = std::str::from_utf8(&bytes).is_ok_and(is_unchanged);
    Ok(if is_ours { Author::Us } else { Author::Other })
}

#[cfg(test)]
mod tests;
