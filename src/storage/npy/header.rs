//! Reading and checking a header.

use super::super::recognize::{PREFIX, recognize};
use super::super::visible::printable;
use super::super::{Number, Problem, Source, product};
use super::dictionary::{self, Dictionary};
use crate::element::Element;

/// The content of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The number format.
    pub number: Number,
    /// True if the most significant byte of a number is stored first.
    pub big_endian: bool,
    /// True if the index of the first axis varies fastest.
    pub fortran_order: bool,
    /// Lengths of the axes.
    pub shape: Vec<u64>,
    /// Offset of the first number, from the start of the file.
    pub offset: u64,
}

const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest header of version 1, in bytes: the limit of numpy.
const LONGEST_OF_VERSION_1: u64 = 10_000;

/// The longest header of later versions, in bytes. Usual headers have about a hundred.
const LONGEST: u64 = 1 << 20;

impl Header {
    /// Reads and checks the header of a file. The data must have exactly the length that follows from the shape.
    ///
    /// The number formats are `f8`, `f4` and `f2` in both byte orders, and `<V2` or `|V2` for bfloat16: with the package
    /// `ml_dtypes`, numpy writes bfloat16 as an unnamed type of two bytes. An array with one axis can also contain integers.
    ///
    /// # Errors
    /// Other number formats, arrays without axes, and files that `numpy.save` does not write.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let refused = |what: String| Problem::data(what).in_file(source.path());
        let malformed = |what: String| {
            refused(what).help(
                "the file is damaged or incomplete: write it again with numpy.save, or download it again",
            )
        };
        let (text_start, text_length) = locate(source)?;
        let text = source.read_vec(text_start, text_length)?;
        let Dictionary { descr, fortran_order, shape } =
            dictionary::parse(&text).map_err(|error| malformed(error.describe(&text, text_start)))?;
        if let Some((found, help)) = not_numbers(&descr) {
            return Err(refused(format!("the array holds {found}, and not numbers")).help(help));
        }
        let may_be = |number: Number| matches!(number, Number::Float(_)) || shape.len() == 1;
        let Some((number, big_endian)) = number_format(&descr).filter(|(number, _)| may_be(*number)) else {
            let what = format!(
                "unsupported number format (descr) {}{}: expected f8, f4, f2, or V2 for bfloat16",
                printable(&descr),
                kind_of(&descr)
            );
            return Err(refused(what).help("convert the array with .astype(\"float32\") before numpy.save"));
        };
        if shape.is_empty() {
            return Err(refused("the file contains a single number, not an array with axes".into())
                .help("save an array of shape (rows, columns)"));
        }
        let header = Self { number, big_endian, fortran_order, shape, offset: text_start + text_length };
        let found = source.length() - header.offset;
        header.refuse_second_array(source, found)?;
        header.check_length(found).map_err(malformed)?;
        Ok(header)
    }

    /// Refuses a file with another array after this one. `found` is the number of bytes after the header.
    fn refuse_second_array(&self, source: &Source, found: u64) -> Result<(), Problem> {
        let expected = product(&self.shape).and_then(|count| count.checked_mul(self.number.size() as u64));
        let length = MAGIC.len() as u64;
        let Some(end) = expected.filter(|&end| end < found && found - end >= length) else { return Ok(()) };
        if source.read_vec(self.offset + end, length)? != MAGIC {
            return Ok(());
        }
        let what =
            format!("the file holds another array after the first one, whose shape is {:?}", self.shape);
        Err(Problem::data(what).in_file(source.path()).help(
            "numpy.save was called several times with one open file: save each array to a file of its own, MODULE.0.npy, MODULE.1.npy",
        ))
    }

    /// Compares the number of bytes that follows from the shape with the number of bytes after the header.
    fn check_length(&self, found: u64) -> Result<(), String> {
        let size = self.number.size() as u64;
        let too_large = || format!("shape {:?} is too large for a file", self.shape);
        let expected =
            product(&self.shape).and_then(|count| count.checked_mul(size)).ok_or_else(too_large)?;
        if found == expected {
            return Ok(());
        }
        let rows = self.shape[0];
        let what =
            format!("shape {:?} needs {expected} bytes, but {found} bytes follow the header", self.shape);
        // Rows cannot be counted if a row has no bytes, or too many for a u64.
        let row = product(&self.shape[1..]).and_then(|count| count.checked_mul(size)).filter(|&row| row > 0);
        let Some(row) = row else { return Err(what) };
        let rest = match found % row {
            0 => String::new(),
            rest => format!(" and {rest} bytes"),
        };
        Err(format!("{what}: expected {rows} rows, found {}{rest}", found / row))
    }
}

/// Returns start and length of the dictionary, after checking them against the file and the limits.
fn locate(source: &Source) -> Result<(u64, u64), Problem> {
    let size = source.length();
    let prefix = source.read_vec(0, size.min(PREFIX))?;
    let refused = |what: String| {
        Problem::data(what).in_file(source.path()).help("write it with numpy.save, or download it again")
    };
    if !prefix.starts_with(MAGIC) {
        return Err(match recognize(&prefix) {
            Some(other) => Problem::data(format!("expected a .npy file, found {}", other.found))
                .in_file(source.path())
                .help(other.help),
            None if size == 0 => refused("the file is empty".into()),
            None => refused("not a .npy file: it does not begin with \"\\x93NUMPY\"".into()),
        });
    }
    let too_short = |least: u64| {
        refused(format!("the file has {size} bytes, but its header needs at least {least} bytes"))
    };
    let Some(&[major, minor]) = prefix.get(6..8) else { return Err(too_short(10)) };
    let (start, longest) = match (major, minor) {
        (1, 0) => (10, LONGEST_OF_VERSION_1),
        (2 | 3, 0) => (12, LONGEST),
        _ => {
            return Err(refused(format!(
                "unsupported version {major}.{minor} of the npy format: expected 1.0, 2.0 or 3.0"
            )));
        }
    };
    let Some(length) = prefix.get(8..start) else { return Err(too_short(start as u64)) };
    let length = length.iter().rev().fold(0, |length, &byte| length << 8 | u64::from(byte));
    if length > longest {
        return Err(refused(format!("the header has {length} bytes, the limit is {longest}")));
    }
    let start = start as u64;
    if length > size - start {
        return Err(too_short(start + length));
    }
    Ok((start, length))
}

/// Returns the number format, and true for big-endian numbers; `None` for unsupported formats.
fn number_format(descr: &str) -> Option<(Number, bool)> {
    match descr {
        "<V2" | "|V2" => return Some((Number::Float(Element::Bf16), false)),
        "|u1" | "|i1" => return Some((Number::Integer { bytes: 1, signed: descr == "|i1" }, false)),
        _ => {}
    }
    let (order, kind) = descr.split_at_checked(1)?;
    let big_endian = match order {
        "<" => false,
        ">" => true,
        "=" => cfg!(target_endian = "big"),
        _ => return None,
    };
    let number = match kind {
        "f8" => Number::Float(Element::F64),
        "f4" => Number::Float(Element::F32),
        "f2" => Number::Float(Element::F16),
        "i2" => Number::Integer { bytes: 2, signed: true },
        "i4" => Number::Integer { bytes: 4, signed: true },
        "i8" => Number::Integer { bytes: 8, signed: true },
        "u2" => Number::Integer { bytes: 2, signed: false },
        "u4" => Number::Integer { bytes: 4, signed: false },
        "u8" => Number::Integer { bytes: 8, signed: false },
        _ => return None,
    };
    Some((number, big_endian))
}

/// The content of an array whose elements are not single numbers, and the way out.
fn not_numbers(descr: &str) -> Option<(&'static str, &'static str)> {
    if descr.starts_with(['[', '(', '{']) {
        return Some((
            "elements of a structured type, with several fields each",
            "save one field, array[\"NAME\"], or numpy.lib.recfunctions.structured_to_unstructured(array)",
        ));
    }
    descr.trim_start_matches(['<', '>', '=', '|']).starts_with('O').then_some((
        "Python objects, such as rows of different lengths",
        "join them into one array of numbers before numpy.save: numpy.concatenate(list(array)).astype(\"float32\")",
    ))
}

/// Describes an unsupported format.
fn kind_of(descr: &str) -> &'static str {
    match descr.trim_start_matches(['<', '>', '=', '|']).chars().next() {
        Some('c') => " (complex numbers)",
        Some('i' | 'u') => " (integers)",
        Some('b' | '?') => " (booleans)",
        Some('S' | 'U' | 'a') => " (text)",
        Some('M' | 'm') => " (dates or times)",
        _ => "",
    }
}
