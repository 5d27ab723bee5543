//! The rules of the options: legal values and legal combinations.

use super::{Options, RankRule};
use crate::error::{Error, Result};
use crate::factors::Strength;
use crate::rank::{Limits, Policy};

impl Options {
    /// Refuses options that have a complaint, with the first.
    ///
    /// # Errors
    /// [`Error::Option`], [`Error::OddRank`], [`Error::Combination`].
    pub fn check(&self) -> Result<()> {
        self.complaints().into_iter().next().map_or(Ok(()), Err)
    }

    /// All options with a value outside its range, and all combinations that are not supported.
    pub fn complaints(&self) -> Vec<Error> {
        let mut complaints = self.terms().complaints();
        let mut require = |legal: bool, what, expected, found| {
            if !legal {
                complaints.push(Error::Option { what, expected, found });
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        const POSITIVE: &str = "a positive number";
        match self.strength {
            Strength::MaxShift(share) => require(positive(share), "the largest shift", POSITIVE, share),
            Strength::Fixed(strength) => require(positive(strength), "the strength", POSITIVE, strength),
        }
        require(positive(self.scale), "the scale", POSITIVE, self.scale);
        if let Some(beta) = self.beta {
            require((0.0..=1.0).contains(&beta), "beta", "from 0 to 1", beta);
        }
        match self.ranks {
            Policy::Fixed(rank)
            | Policy::BudgetOfRank(rank)
            | Policy::Shared(rank)
            | Policy::Proportional(rank) => {
                require(rank > 0, "the rank", "at least 1", rank as f64);
            }
            Policy::Energy(share) => {
                require(share > 0.0 && share <= 1.0, "the energy share", "above 0 and at most 1", share);
            }
            Policy::Budget(parameters) => {
                require(parameters > 0, "the parameter budget", "at least 1", parameters as f64);
            }
        }
        let Limits { min, max, multiple } = self.limits;
        require(multiple > 0, "the rank multiple", "at least 1", multiple as f64);
        require(max > 0, "the largest rank", "at least 1", max as f64);
        require(min <= max, "the least rank", "at most the largest rank", min as f64);
        if let Policy::Fixed(rank) = self.ranks {
            require(rank <= max, "the rank", "at most the largest rank", rank as f64);
            if self.has_pairs() && !rank.is_multiple_of(2) {
                let by_method = self.method.definition().has_pairs();
                let what = if by_method {
                    format!("the method {}", self.method)
                } else {
                    format!("the {} start", self.start)
                };
                complaints.push(Error::OddRank { rank, what });
            }
        }
        complaints.extend(self.missing_combinations());
        complaints
    }

    /// The combinations that the method does not support.
    fn missing_combinations(&self) -> impl Iterator<Item = Error> {
        let method = self.method.name();
        let starts = self.method.starts();
        let start = (!starts.contains(&self.start)).then(|| Error::Combination {
            method,
            what: format!("start {}", self.start.name()),
            instead: format!(
                "it supports {}",
                starts.iter().map(|start| start.name()).collect::<Vec<_>>().join(", ")
            ),
        });
        let legal = match (self.method.rank_rule(), self.ranks) {
            (RankRule::Spectrum, policy) => !matches!(policy, Policy::Shared(_) | Policy::Proportional(_)),
            (RankRule::Shared, policy) => matches!(policy, Policy::Fixed(_) | Policy::Shared(_)),
            (RankRule::Proportional, policy) => matches!(policy, Policy::Fixed(_) | Policy::Proportional(_)),
            (RankRule::Fixed, policy) => matches!(policy, Policy::Fixed(_)),
        };
        let ranks = (!legal).then(|| Error::Combination {
            method,
            what: "this choice of ranks".into(),
            instead: match self.method.rank_rule() {
                RankRule::Spectrum => {
                    "it supports one rank for all layers, a share of the energy, or a budget"
                }
                RankRule::Shared => "it supports a rank that layers share, or one rank for all layers",
                RankRule::Proportional => {
                    "it supports ranks in proportion to effective ranks, or one rank for all layers"
                }
                RankRule::Fixed => "it supports one rank for all layers",
            }
            .into(),
        });
        start.into_iter().chain(ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::ChannelScale;
    use crate::factors::Start;
    use crate::initializer::Initializer;
    use crate::method::Method;
    use crate::moments::Moments;
    use expect_test::expect;

    #[test]
    fn the_defaults_are_legal() {
        assert_eq!(Options::default().complaints(), []);
    }

    /// Every option with a range is checked, and all complaints are returned together.
    #[test]
    fn every_range_is_checked() {
        let options = Options {
            preserve: -1.0,
            ridge: 0.0,
            strength: Strength::MaxShift(f64::NAN),
            ranks: Policy::Energy(1.5),
            limits: Limits { min: 3, max: 0, multiple: 0 },
            scale: f64::INFINITY,
            beta: Some(1.5),
            ..Options::default()
        };
        let texts = |options: Options| {
            options.complaints().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        expect![[r#"
            the ridge is 0, but must be above 0 and at most 1
            the preservation weight is -1, but must be 0 or a positive number
            the largest shift is NaN, but must be a positive number
            the scale is inf, but must be a positive number
            beta is 1.5, but must be from 0 to 1
            the energy share is 1.5, but must be above 0 and at most 1
            the rank multiple is 0, but must be at least 1
            the largest rank is 0, but must be at least 1
            the least rank is 3, but must be at most the largest rank"#]]
        .assert_eq(&texts(options));
        let ranks = [Policy::Fixed(0), Policy::BudgetOfRank(0), Policy::Budget(0)]
            .map(|ranks| texts(Options { ranks, ..Options::default() }));
        expect![[r#"
            the rank is 0, but must be at least 1
            the rank is 0, but must be at least 1
            the parameter budget is 0, but must be at least 1"#]]
        .assert_eq(&ranks.join("\n"));
        let strength = Options { strength: Strength::Fixed(0.0), ..Options::default() };
        expect!["the strength is 0, but must be a positive number"].assert_eq(&texts(strength));
    }

    /// Options that were saved without a scale and a shrinkage keep their meaning.
    #[test]
    fn options_without_new_fields_are_read() {
        let now = Options { channel_scale: ChannelScale::Mean, ..Options::default() };
        let mut value = serde_json::to_value(&now).unwrap();
        for field in ["channel_scale", "shrinkage"] {
            assert!(value.as_object_mut().unwrap().remove(field).is_some(), "{field}");
        }
        assert_eq!(serde_json::from_value::<Options>(value).unwrap(), now);
    }

    /// No function takes options that have a complaint.
    #[test]
    fn options_with_complaints_are_refused_everywhere() {
        let rows = crate::random::gaussian::<f32>(50, 6, 1, "rows");
        let weight = crate::random::gaussian::<f32>(8, 6, 1, "weight");
        let moments = Moments::of(rows.as_ref()).unwrap();
        let limits = Limits { min: 0, max: 4, multiple: 1 };
        let legal = Options { ranks: Policy::Fixed(4), limits, ..Options::default() };
        let site = Initializer::new(legal.clone()).unwrap().site(&moments).unwrap();
        let draft = site.layer("w", weight.as_ref()).unwrap().into_draft();
        for bad in [
            Options { ranks: Policy::Fixed(32), limits: Limits { max: 16, ..limits }, ..legal.clone() },
            Options { method: Method::Pissa, start: Start::Update, ..legal.clone() },
            Options { method: Method::Eva, start: Start::Update, ..legal.clone() },
            Options { scale: 0.0, ..legal.clone() },
        ] {
            let wanted = bad.complaints().remove(0);
            assert_eq!(bad.check(), Err(wanted.clone()));
            assert_eq!(draft.initialize(4, &bad).map(drop), Err(wanted.clone()));
            assert_eq!(Initializer::new(bad).map(drop), Err(wanted));
        }
    }
}
