//! Escapes text for markup. Every string from outside goes through here.

/// Unchanged text, for elements and for quoted attributes.
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

/// A name from outside. Invisible characters, and those that change the direction of writing, are shown as escapes.
pub(super) fn visible(name: &str) -> String {
    text(&name.escape_debug().to_string())
}

/// A name from outside as an element. Its direction of writing does not change that of the text around it.
pub(super) fn name(name: &str) -> String {
    format!("<bdi>{}</bdi>", visible(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// No character is left that could end an element or an attribute, and a browser reads the original text.
        fn escaped_text_cannot_end_an_element(original: String) -> bool {
            let escaped = text(&original);
            let read = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
                .iter()
                .fold(escaped.clone(), |text, (entity, character)| text.replace(entity, character));
            !escaped.contains(['<', '>', '"', '\'']) && read == original
        }
    }

    /// Letters of any script stay as they are.
    #[test]
    fn invisible_characters_are_shown_as_escapes() {
        assert_eq!(visible("a\n\u{1b}[0m\u{202e}b"), "a\\n\\u{1b}[0m\\u{202e}b");
        assert_eq!(name("שכבה.层"), "<bdi>שכבה.层</bdi>");
    }
}
