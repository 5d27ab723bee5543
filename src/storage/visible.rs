//! Text from files and users in messages: characters that a terminal obeys are escaped, and long names are shortened.

use std::borrow::Cow;

/// The most characters of a name in a message.
const LONGEST_NAME: usize = 1024;

/// The most characters of a message that quotes a file, such as that of a parser.
const LONGEST_QUOTE: usize = 300;

/// The most characters of a line of a message.
const LONGEST_LINE: usize = 4096;

/// A name for a message. Quotation marks, backslashes and invisible characters are escaped, and an ellipsis replaces the middle of a long
/// name.
pub fn visible(name: &str) -> String {
    shortened(name, LONGEST_NAME).escape_debug().to_string()
}

/// As [`visible`], in double quotes.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", visible(name))
}

/// A text that quotes a file, such as a message of a parser: invisible characters are escaped, and an ellipsis replaces the text after 300
/// characters.
pub(crate) fn printable(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE) {
        Some((end, _)) => one_line(&text[..end]).into_owned() + "…",
        None => one_line(text).into_owned(),
    }
}

/// A text on one line, without characters that a terminal obeys: control characters, invisible characters, and those that change the
/// direction of writing.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |character| !is_shown(character))
}

/// As [`one_line`], but line breaks stay.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |character| character != '\n' && !is_shown(character))
}

/// As [`lines`], and an ellipsis replaces the middle of long lines.
pub(crate) fn message(text: &str) -> String {
    lines(&short_lines(text)).into_owned()
}

/// A text in which an ellipsis replaces the middle of long lines.
pub(crate) fn short_lines(text: &str) -> String {
    text.split('\n').map(|line| shortened(line, LONGEST_LINE)).collect::<Vec<_>>().join("\n")
}

/// JSON text with escapes for all characters that [`one_line`] escapes. Its value stays the same.
pub(crate) fn json(text: &str) -> Cow<'_, str> {
    // Such characters are inside strings, except for the line breaks of indented text.
    let is_unsafe = |character| character != '\n' && !is_shown(character);
    if !text.contains(is_unsafe) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if is_unsafe(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                safe.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            safe.push(character);
        }
    }
    safe.into()
}

/// `text` in at most `width` characters; an ellipsis replaces the middle of a longer text.
pub(crate) fn shortened(text: &str, width: usize) -> Cow<'_, str> {
    // A text has at most as many characters as bytes.
    if text.len() <= width {
        return text.into();
    }
    let count = text.chars().count();
    if count <= width {
        return text.into();
    }
    let kept = width.saturating_sub(1);
    let tail = kept.div_ceil(2);
    let at = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
    format!("{}…{}", &text[..at(kept - tail)], &text[at(count - tail)..]).into()
}

fn escaped(text: &str, is_unsafe: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_unsafe) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match is_unsafe(character) {
            true => safe.extend(character.escape_debug()),
            false => safe.push(character),
        }
    }
    safe.into()
}

/// True for a character that has a shape of its own, or that belongs to the letter before it.
fn is_shown(character: char) -> bool {
    match character {
        ' '..='~' => true,
        '\0'..='\u{9f}' => false,
        // The space of groups of digits.
        '\u{202f}' => true,
        // After a letter, accents are not escaped.
        _ => {
            let pair = ['a', character].iter().collect::<String>();
            pair.escape_debug().count() == 2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    /// Characters that a terminal obeys, or that change the order of the text around them.
    const HOSTILE: [char; 24] = [
        '\0',
        '\u{7}',
        '\u{8}',
        '\t',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{9f}',
        '\u{ad}',
        '\u{200b}',
        '\u{200e}',
        '\u{200f}',
        '\u{2028}',
        '\u{202a}',
        '\u{202e}',
        '\u{2066}',
        '\u{2069}',
        '\u{feff}',
        '\u{fff9}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{61c}',
    ];

    quickcheck! {
        /// A name must not move the cursor of a terminal, start a new line of a log, or turn the text around it.
        fn no_hostile_character_is_left(name: String, hostile: u8) -> bool {
            let hostile = HOSTILE[usize::from(hostile) % HOSTILE.len()];
            let name = format!("{name}{hostile}{name}\n");
            let is_safe = |text: &str| !text.contains(|character| character == '\n' || !is_shown(character));
            let quoting = [visible(&name), quoted(&name), printable(&name), one_line(&name).into_owned()];
            let broken = [message(&name), lines(&name).into_owned()];
            quoting.iter().all(|text| is_safe(text) && !text.contains(HOSTILE))
                && broken.iter().all(|text| is_safe(&text.replace('\n', "")) && !text.contains(HOSTILE))
        }

        /// The value of JSON is the same.
        fn safe_json_has_the_same_value(text: String, hostile: u8) -> bool {
            let value = serde_json::json!({ text.clone(): [HOSTILE[usize::from(hostile) % HOSTILE.len()].to_string(), text] });
            let original = serde_json::to_string_pretty(&value).unwrap();
            let safe = json(&original);
            serde_json::from_str::<serde_json::Value>(&safe).unwrap() == value && !safe.contains(HOSTILE)
        }

        fn shortening_keeps_short_texts_and_both_ends_of_long_ones(text: String, width: u8) -> bool {
            let (long, width) = (text.chars().count(), usize::from(width).max(3));
            let short = shortened(&text, width);
            if long <= width {
                short == text
            } else {
                short.chars().count() == width
                    && short.chars().next() == text.chars().next()
                    && short.chars().last() == text.chars().last()
            }
        }
    }

    #[test]
    fn letters_of_all_scripts_stay_as_they_are() {
        let text = "layer.0: Größe e\u{301} 层 שכבה ▁█ 12\u{202f}000 × – … \"'\\";
        assert_eq!(one_line(text), text);
        assert_eq!(json(text), text);
    }

    #[test]
    fn long_texts_are_shortened() {
        let long = "é".repeat(65_536);
        assert_eq!(visible(&long).chars().count(), LONGEST_NAME);
        assert!(visible(&long).contains("é…é"));
        assert_eq!(
            message(&format!("a\n{long}\nb")).lines().map(|line| line.chars().count()).max(),
            Some(LONGEST_LINE)
        );
        assert_eq!(printable(&"é".repeat(300)), "é".repeat(300));
        assert_eq!(printable(&"é".repeat(301)), "é".repeat(300) + "…");
        assert_eq!(printable("\u{1b}[31m \"a\""), "\\u{1b}[31m \"a\"");
        assert_eq!(json(&format!("\"{long}\"")).chars().count(), 65_538);
    }
}
