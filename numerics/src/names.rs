//! The names of choices: one table for options, files and messages.

use crate::error::Error;

/// Gives the variants of an enum their names: `name`, `ALL`, `Display`, `FromStr`, and the form in files.
///
/// Every variant has one name, and the compiler checks that none is missing.
macro_rules! names {
    ($choice:ident, $what:literal: $($variant:ident = $name:literal),+ $(,)?) => {
        impl $choice {
            /// All choices, in the order of their declaration.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in options, files and messages. [`FromStr`](std::str::FromStr) reads it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl std::fmt::Display for $choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $choice {
            type Err = $crate::error::Error;

            fn from_str(name: &str) -> std::result::Result<Self, Self::Err> {
                let found = Self::ALL.into_iter().find(|choice| choice.name() == name);
                found.ok_or_else(|| $crate::names::unknown($what, name, &Self::ALL.map(Self::name)))
            }
        }

        impl serde::Serialize for $choice {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> serde::Deserialize<'de> for $choice {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                const NAMES: &[&str] = &[$($name),+];
                let name = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
                name.parse().map_err(|_| serde::de::Error::unknown_variant(&name, NAMES))
            }
        }
    };
}
pub(crate) use names;

/// The error for a name that no choice has.
pub(crate) fn unknown(what: &'static str, found: &str, names: &[&str]) -> Error {
    Error::UnknownName { what, found: found.to_owned(), expected: names.join(", ") }
}

#[cfg(test)]
mod tests {
    use crate::constraint::{ChannelScale, Coupling, Norm, Shrinkage};
    use crate::element::Element;
    use crate::factors::Start;
    use crate::method::Method;
    use crate::simd::Precision;
    use expect_test::expect;
    use std::fmt::{Debug, Display};
    use std::str::FromStr;

    /// Every name reads back, in options and in files. Returns the names, joined.
    fn names<T>(all: impl IntoIterator<Item = T>) -> String
    where
        T: Copy + Debug + Display + FromStr + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
    {
        let check = |choice: T| {
            let name = choice.to_string();
            assert_eq!(name.parse().ok(), Some(choice));
            assert_eq!(serde_json::to_string(&choice).unwrap(), format!("{name:?}"));
            assert_eq!(serde_json::from_str::<T>(&format!("{name:?}")).unwrap(), choice);
            name
        };
        all.into_iter().map(check).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_read_back() {
        let all = [
            names(Method::ALL),
            names(Start::ALL),
            names(Coupling::ALL),
            names(Norm::ALL),
            names(ChannelScale::ALL),
            names(Shrinkage::ALL),
            names(Precision::ALL),
            names(Element::ALL),
        ];
        expect![[r#"
            cntlora pissa milora olora olora-tail mica corda-ipm corda-kpm sc-lora astra lora-null eva lora gaussian orthogonal
            zero mirrored update residual
            uncorrelated transport paired
            activations weights
            mean median
            none oas
            f32 bf16
            F64 F32 F16 BF16"#]]
        .assert_eq(&all.join("\n"));
    }

    #[test]
    fn unknown_names_are_refused() {
        expect![[r#"unknown start "none": use one of zero, mirrored, update, residual"#]]
            .assert_eq(&"none".parse::<Start>().unwrap_err().to_string());
        expect!["unknown variant `none`, expected one of `zero`, `mirrored`, `update`, `residual`"]
            .assert_eq(&serde_json::from_str::<Start>(r#""none""#).unwrap_err().to_string());
    }
}
