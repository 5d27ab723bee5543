//! A command line as one would type it.

use std::ffi::OsString;

/// Words with quotes where a shell needs them.
pub fn command_line(words: impl IntoIterator<Item = OsString>) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "-_./=,:".contains(character);
    let words = words.into_iter().map(|word| match word.to_string_lossy() {
        word if !word.is_empty() && word.chars().all(plain) => word.into_owned(),
        word => format!("'{}'", word.replace('\'', r"'\''")),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is printed can be pasted into a shell.
    #[test]
    fn words_are_quoted_where_needed() {
        let words = ["cntlora", "init", "a/b-c_d.e", "two words", "it's", ""].map(OsString::from);
        assert_eq!(command_line(words), r"cntlora init a/b-c_d.e 'two words' 'it'\''s' ''");
    }
}
