//! Parses the dictionary of a header without recursion.

/// The three entries, without a check of their meaning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dictionary {
    /// The string, or the unparsed text of a structured type.
    pub(super) descr: String,
    pub(super) fortran_order: bool,
    pub(super) shape: Vec<u64>,
}

/// A syntax error.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unexpected {
    expected: &'static str,
    at: usize,
}

impl Unexpected {
    /// Describes the error; `start` is the offset of the text in the file.
    pub(super) fn describe(&self, text: &[u8], start: u64) -> String {
        let found = match text.get(self.at) {
            Some(&byte) => format!("\"{}\"", byte.escape_ascii()),
            None => "the end".into(),
        };
        format!("expected {} at byte {} of the header, found {found}", self.expected, start + self.at as u64)
    }
}

/// Parses `{'descr': …, 'fortran_order': …, 'shape': …, }`, spaces and a newline. The order of the keys does not matter.
///
/// If `descr` is a structured type, parsing stops there: the result has the rest of the text as `descr`, and nothing else.
pub(super) fn parse(text: &[u8]) -> Result<Dictionary, Unexpected> {
    let mut cursor = Cursor { text, at: 0 };
    let (mut descr, mut fortran_order, mut shape) = (None, None, None);
    cursor.expect(b"{", "\"{\"")?;
    while !cursor.skip(b"}") {
        let key_start = cursor.at;
        let key = cursor.string("a quoted key")?;
        cursor.expect(b":", "\":\"")?;
        let duplicate = match key {
            b"descr" => {
                if cursor.peek().is_some_and(|byte| b"[({".contains(&byte)) {
                    let descr = String::from_utf8_lossy(&text[cursor.at..]).trim_end().to_owned();
                    return Ok(Dictionary { descr, fortran_order: false, shape: Vec::new() });
                }
                descr
                    .replace(String::from_utf8_lossy(cursor.string("a quoted descr")?).into_owned())
                    .is_some()
            }
            b"fortran_order" => fortran_order.replace(cursor.truth()?).is_some(),
            b"shape" => shape.replace(cursor.shape()?).is_some(),
            _ => {
                return Err(Unexpected {
                    expected: "one of the keys descr, fortran_order and shape",
                    at: key_start,
                });
            }
        };
        if duplicate {
            return Err(Unexpected { expected: "no duplicate key", at: key_start });
        }
        if !cursor.skip(b",") {
            cursor.expect(b"}", "\",\" or \"}\"")?;
            break;
        }
    }
    let end = cursor.at;
    let missing = |expected| Unexpected { expected, at: end };
    let dictionary = Dictionary {
        descr: descr.ok_or(missing("a dictionary with descr"))?,
        fortran_order: fortran_order.ok_or(missing("a dictionary with fortran_order"))?,
        shape: shape.ok_or(missing("a dictionary with shape"))?,
    };
    while text.get(cursor.at) == Some(&b' ') {
        cursor.at += 1;
    }
    if text.get(cursor.at..) != Some(b"\n") {
        return Err(cursor.unexpected("spaces and one newline to the end"));
    }
    Ok(dictionary)
}

struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn unexpected(&self, expected: &'static str) -> Unexpected {
        Unexpected { expected, at: self.at }
    }

    /// The next byte that is not a space.
    fn peek(&mut self) -> Option<u8> {
        while self.text.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn skip(&mut self, token: &[u8]) -> bool {
        self.peek();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &[u8], name: &'static str) -> Result<(), Unexpected> {
        if self.skip(token) { Ok(()) } else { Err(self.unexpected(name)) }
    }

    /// Parses a string without escapes, in single or double quotes.
    fn string(&mut self, name: &'static str) -> Result<&'a [u8], Unexpected> {
        let quote = match self.peek() {
            Some(quote @ (b'\'' | b'"')) => quote,
            _ => return Err(self.unexpected(name)),
        };
        self.at += 1;
        let rest = &self.text[self.at..];
        let length = rest.iter().position(|&byte| byte == quote || byte == b'\\' || byte == b'\n');
        let length = length.unwrap_or(rest.len());
        self.at += length;
        self.expect(&[quote], "the closing quote of a string")?;
        Ok(&rest[..length])
    }

    fn truth(&mut self) -> Result<bool, Unexpected> {
        if self.skip(b"True") { Ok(true) } else { self.expect(b"False", "True or False").map(|()| false) }
    }

    /// Parses a tuple of lengths: `()`, `(3,)`, `(3, 4)` or `(3, 4, )`.
    fn shape(&mut self) -> Result<Vec<u64>, Unexpected> {
        let mut shape = Vec::new();
        self.expect(b"(", "a tuple")?;
        while !self.skip(b")") {
            shape.push(self.length()?);
            if !self.skip(b",") {
                if shape.len() == 1 {
                    return Err(self.unexpected("\",\" in a tuple with one element"));
                }
                self.expect(b")", "\",\" or \")\"")?;
                break;
            }
        }
        Ok(shape)
    }

    /// Parses a decimal number below 2^63, without sign and leading zeros.
    fn length(&mut self) -> Result<u64, Unexpected> {
        const NAME: &str = "the length of an axis (0 to 2^63 - 1)";
        self.peek();
        let unexpected = self.unexpected(NAME);
        let digits = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let digits = &self.text[self.at..self.at + digits];
        self.at += digits.len();
        match digits {
            [] | [b'0', _, ..] => Err(unexpected),
            _ => digits
                .iter()
                .try_fold(0i64, |value, &digit| value.checked_mul(10)?.checked_add(i64::from(digit - b'0')))
                .map(i64::cast_unsigned)
                .ok_or(unexpected),
        }
    }
}
