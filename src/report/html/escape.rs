//! Text on its way into markup. Every string that comes from outside goes through here.

/// Text as it stands, for elements and for quoted attributes.
pub(super) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A name from outside: characters that cannot be seen, or that would turn the text around them, are shown as escapes.
pub(super) fn visible(name: &str) -> String {
    text(&name.escape_debug().to_string())
}

/// A name from outside as an element, which keeps its direction of writing to itself.
pub(super) fn name(name: &str) -> String {
    format!("<bdi>{}</bdi>", visible(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Whatever the text, no character is left that could end an element or an attribute, and a browser reads the text back.
        fn nothing_ends_an_element(original: String) -> bool {
            let escaped = text(&original);
            let read = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
                .iter()
                .fold(escaped.clone(), |text, (entity, character)| text.replace(entity, character));
            !escaped.contains(['<', '>', '"', '\'']) && read == original
        }
    }

    /// Line breaks, escape sequences and marks that turn the direction are shown, letters of any script stay.
    #[test]
    fn what_cannot_be_seen_is_shown() {
        assert_eq!(visible("a\n\u{1b}[0m\u{202e}b"), "a\\n\\u{1b}[0m\\u{202e}b");
        assert_eq!(name("שכבה.层"), "<bdi>שכבה.层</bdi>");
    }
}
