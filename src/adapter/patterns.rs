//! Values by regular expression, as in `rank_pattern` and `alpha_pattern`. Adapters with many experts have one expression for each layer,
//! so that a layer must not be compared with all of them.
//!
//! An expression `key` matches the name of a module if `^(?:.*\.)?(?:key)$` does. Three kinds of keys are looked up in a map:
//!
//! | key | matches |
//! |---|---|
//! | `a\.q` | `a.q`, and names that end in `.a.q` |
//! | `^a\.q` | `a.q` alone |
//! | `a.q`, a name that PEFT does not escape | as `a\.q`, with any character for the dot |
//!
//! All other keys are in one set of regular expressions, whose memory has a limit.

use crate::storage::expressions::{Unusable, check_syntax, compile_set, ends_of};
use crate::storage::quoted;
use regex::RegexSet;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::marker::PhantomData;

/// `rank_pattern` or `alpha_pattern`: values by regular expression, in the order of the file.
#[derive(Clone, Debug)]
pub struct Patterns<T> {
    values: Vec<T>,
    /// The places of values by the complete name of a module.
    names: HashMap<String, usize>,
    /// The places of values by the end of a name.
    ends: HashMap<String, usize>,
    /// Keys with dots that match any character, by the number of characters.
    dotted: BTreeMap<usize, Vec<Dotted>>,
    /// All other keys, and the places of their values.
    set: RegexSet,
    places: Vec<usize>,
}

/// Keys that have equal length, and dots for any character at the same positions.
#[derive(Clone, Debug)]
struct Dotted {
    /// True if only complete names match.
    is_anchored: bool,
    /// The positions that match any character, in characters.
    dots: Vec<usize>,
    /// The places of values by key.
    places: HashMap<String, usize>,
}

/// The most groups of keys with equal positions of dots. Names of layers need few. Other keys are regular expressions.
const MOST_GROUPS: usize = 256;

/// A key without operators other than dots.
struct Literal {
    is_anchored: bool,
    text: String,
    /// The positions in `text` that match any character, in characters.
    dots: Vec<usize>,
}

impl<T> Patterns<T> {
    /// The value of the first expression that matches the name of a module, or the end of the name after a dot.
    pub fn first_match(&self, module: &str) -> Option<&T> {
        let mut first = self.names.get(module).copied();
        let mut keep = |place: Option<usize>| first = [first, place].into_iter().flatten().min();
        // The part before an end has no line break, because a dot in an expression does not match one.
        let first_break = module.find('\n').unwrap_or(module.len());
        let (mut at, mut characters) = (0, module.chars().count());
        for end in ends_of(module) {
            let start = module.len() - end.len();
            if start > first_break {
                break;
            }
            keep(self.ends.get(end).copied());
            characters -= module[at..start].chars().count();
            at = start;
            for group in self.dotted.get(&characters).into_iter().flatten() {
                if start == 0 || !group.is_anchored {
                    keep(group.find(end));
                }
            }
        }
        if !self.places.is_empty() {
            keep(self.set.matches(module).iter().next().map(|index| self.places[index]));
        }
        first.map(|place| &self.values[place])
    }

    fn new(entries: Vec<(String, T)>) -> Result<Self, Unusable> {
        let mut patterns = Self {
            values: Vec::with_capacity(entries.len()),
            names: HashMap::new(),
            ends: HashMap::new(),
            dotted: BTreeMap::new(),
            set: RegexSet::empty(),
            places: Vec::new(),
        };
        let (mut expressions, mut groups) = (Vec::new(), 0);
        for (place, (key, value)) in entries.into_iter().enumerate() {
            patterns.values.push(value);
            let is_known = match Literal::of(&key) {
                Some(Literal { is_anchored, text, dots }) if dots.is_empty() => {
                    let map = if is_anchored { &mut patterns.names } else { &mut patterns.ends };
                    map.entry(text).or_insert(place);
                    true
                }
                Some(literal) => patterns.insert_dotted(literal, place, &mut groups),
                None => false,
            };
            if !is_known {
                expressions.push(whole(&key));
                patterns.places.push(place);
            }
        }
        if !expressions.is_empty() {
            patterns.set = compile_set(&expressions)?;
        }
        Ok(patterns)
    }

    /// Inserts a key with dots. False if there are too many groups already.
    fn insert_dotted(&mut self, literal: Literal, place: usize, groups: &mut usize) -> bool {
        let Literal { is_anchored, text, dots } = literal;
        let same = self.dotted.entry(text.chars().count()).or_default();
        let known = same.iter_mut().find(|group| (group.is_anchored, &group.dots) == (is_anchored, &dots));
        let group = match known {
            Some(group) => group,
            None if *groups == MOST_GROUPS => return false,
            None => {
                *groups += 1;
                same.push(Dotted { is_anchored, dots, places: HashMap::new() });
                same.last_mut().expect("it was pushed")
            }
        };
        group.places.entry(text).or_insert(place);
        true
    }
}

impl Dotted {
    /// The place of the key that matches a name of the same length.
    fn find(&self, name: &str) -> Option<usize> {
        let mut dots = self.dots.iter().peekable();
        let mut key = String::with_capacity(name.len());
        for (at, character) in name.chars().enumerate() {
            match dots.next_if_eq(&&at) {
                Some(_) if character == '\n' => return None,
                Some(_) => key.push('.'),
                None => key.push(character),
            }
        }
        self.places.get(&key).copied()
    }
}

impl Literal {
    fn of(key: &str) -> Option<Self> {
        let (is_anchored, rest) = key.strip_prefix('^').map_or((false, key), |rest| (true, rest));
        let mut literal = Self { is_anchored, text: String::with_capacity(rest.len()), dots: Vec::new() };
        let mut characters = rest.chars();
        let mut at = 0;
        while let Some(character) = characters.next() {
            literal.text.push(match character {
                '\\' => characters.next().filter(|next| is_escaped(*next))?,
                '.' => {
                    literal.dots.push(at);
                    '.'
                }
                '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' => return None,
                character => character,
            });
            at += 1;
        }
        Some(literal)
    }
}

/// True if a backslash before this character stands for the character itself.
fn is_escaped(character: char) -> bool {
    character.is_ascii() && !character.is_ascii_alphanumeric() && !['<', '>'].contains(&character)
}

/// The names in the expression `^(?:NAME|NAME|…)$`, which this program writes for lists of complete names. `None` for other expressions.
pub(super) fn listed_names(expression: &str) -> Option<BTreeSet<String>> {
    let names = expression.strip_prefix("^(?:")?.strip_suffix(")$")?;
    let literal = |name| Literal::of(name).filter(|name| !name.is_anchored && name.dots.is_empty());
    // An escaped bar is not a separator. Then the part before it ends in a backslash, which is no literal.
    names.split('|').map(|name| literal(name).map(|name| name.text)).collect()
}

/// The expression that matches the complete names of modules.
fn whole(key: &str) -> String {
    format!(r"^(?:.*\.)?(?:{key})$")
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    /// Keeps the order of the file, which decides between several matches. A map type would lose it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with regular expressions as keys")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if Literal::of(&key).is_none()
                        && let Err(unusable) = check_syntax(&whole(&key))
                    {
                        return Err(A::Error::custom(refusal(&key, &unusable)));
                    }
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("duplicate pattern {}", quoted(&key))));
                    }
                    entries.push((key, value));
                }
                Patterns::new(entries)
                    .map_err(|unusable| A::Error::custom(format!("the patterns are {}", unusable.reason())))
            }
        }

        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// The message about an expression that cannot be used.
pub(super) fn refusal(key: &str, unusable: &Unusable) -> String {
    let key = quoted(key);
    match unusable {
        Unusable::Invalid(_) => format!("invalid or unsupported regular expression {key}"),
        Unusable::TooLarge => format!("the regular expression {key} is {}", unusable.reason()),
    }
}

#[cfg(test)]
mod tests;
