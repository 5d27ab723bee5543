//! JSON objects without duplicate keys: where most readers let the last one win, these refuse.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

/// Inserts, or complains of a key that is there already.
pub(super) fn insert_unique<T, E: Error>(
    map: &mut BTreeMap<String, T>,
    key: String,
    value: T,
) -> Result<(), E> {
    match map.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(value);
            Ok(())
        }
        Entry::Occupied(entry) => Err(E::custom(format!("duplicate key {}", super::quoted(entry.key())))),
    }
}

/// An object whose keys differ.
pub(crate) struct UniqueKeys<T>(pub(crate) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for UniqueKeys<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = UniqueKeys<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("{}: {error}", super::quoted(&key))))?;
                    insert_unique(&mut entries, key, value)?;
                }
                Ok(UniqueKeys(entries))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_refused_also_when_one_is_escaped() {
        let read = |text| serde_json::from_str::<UniqueKeys<u8>>(text).map(|keys| keys.0);
        assert_eq!(read(r#"{"b":1,"a":2}"#).unwrap(), BTreeMap::from([("a".into(), 2), ("b".into(), 1)]));
        for text in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":2}"#] {
            assert!(read(text).unwrap_err().to_string().starts_with("duplicate key \"a\""));
        }
        assert!(read(r#"{"a":256}"#).unwrap_err().to_string().starts_with("\"a\": invalid value"));
        assert!(read("[1]").unwrap_err().to_string().contains("expected an object"));
    }
}
