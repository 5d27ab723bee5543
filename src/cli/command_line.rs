//! A command line in the words of a shell.

use std::ffi::OsStr;

/// Joins words, with quotes where a POSIX shell needs them.
pub(crate) fn join(words: impl IntoIterator<Item: AsRef<OsStr>>) -> String {
    let quoter = shlex::Quoter::new().allow_nul(true);
    let quoted = words.into_iter().map(|word| match quoter.quote(&word.as_ref().to_string_lossy()) {
        Ok(quoted) => quoted.into_owned(),
        Err(error) => unreachable!("nul bytes are allowed: {error}"),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        let words = [
            "cntlora",
            "init",
            "a/b-c_d.e",
            "--target=q,v",
            "two words",
            "it's",
            "$HOME",
            "a\\b",
            "*",
            "ä",
            "",
        ];
        expect![[r#"cntlora init a/b-c_d.e '--target=q,v' 'two words' "it's" '$HOME' "a\\b" '*' 'ä' ''"#]]
            .assert_eq(&join(words));
        let printed =
            std::process::Command::new("sh").args(["-c", &format!("printf '%s\n' {}", join(words))]).output();
        assert_eq!(
            String::from_utf8(printed.unwrap().stdout).unwrap(),
            words.map(|word| format!("{word}\n")).concat()
        );
    }
}
