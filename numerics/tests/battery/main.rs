//! The whole numerics, from rows to factors, against an oracle in f64 that shares no code with the crate.
//!
//! | room | holds |
//! |---|---|
//! | `oracle` | matrices and their decompositions, in plain loops |
//! | `truth` | the method by its definitions, and the accuracy that f32 allows |
//! | `inputs` | activations and weights, at random |
//! | `subject` | the functions of the crate that are tested |
//! | the others | the tests |
//!
//! The cases are the same in every run. Others, and more of them:
//!
//! ```text
//! BATTERY_SEED=7 QUICKCHECK_TESTS=5000 cargo test --release --test battery
//! ```

use quickcheck::{Gen, QuickCheck, Testable};

/// Tests of one property each.
macro_rules! battery {
    ($($(#[$attribute:meta])* fn $name:ident($($case:ident: $family:ty),+) -> bool $body:block)*) => {$(
        $(#[$attribute])*
        #[test]
        fn $name() {
            fn property($($case: $family),+) -> bool $body
            crate::check(property as fn($($family),+) -> bool);
        }
    )*};
}

fn check(property: impl Testable) {
    let seed =
        std::env::var("BATTERY_SEED").map_or(0, |seed| seed.parse().expect("a number for BATTERY_SEED"));
    QuickCheck::new().rng(Gen::from_size_and_seed(100, seed)).quickcheck(property);
}

mod inputs;
mod oracle;
mod subject;
mod truth;

mod few_units;
mod moments;
mod peers;
mod ranks;
mod refused;
mod subspaces;
mod updates;
mod wide;
