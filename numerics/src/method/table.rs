//! The table of methods. A new method needs its own file, its `mod` line in `mod.rs`, and a row here: variant, name, definition.

use super::definition::{Definition, Form, RankRule, Uses};
use crate::factors::{LayerShape, Start};
use crate::names::names;

macro_rules! methods {
    ($($(#[$attribute:meta])* $variant:ident = $name:literal: $definition:expr;)+) => {
        /// A method: how an adapter is initialized.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Method {
            $($(#[$attribute])* $variant,)+
        }

        names!(Method, "method": $($variant = $name),+);

        impl Method {
            pub(crate) fn definition(self) -> &'static dyn Definition {
                match self {
                    $(Self::$variant => &$definition,)+
                }
            }
        }
    };
}

methods! {
    /// See [`cntlora`](super::cntlora).
    #[default] Cntlora = "cntlora": super::cntlora::Cntlora;
    /// See [`pissa`](super::pissa).
    Pissa = "pissa": super::pissa::Pissa;
    /// See [`milora`](super::milora).
    Milora = "milora": super::milora::Milora;
    /// See [`olora`](super::olora).
    Olora = "olora": super::olora::Olora;
    /// See [`olora_tail`](super::olora_tail).
    OloraTail = "olora-tail": super::olora_tail::OloraTail;
    /// See [`mica`](super::mica).
    Mica = "mica": super::mica::Mica;
    /// See [`corda`](super::corda): the instruction-previewed mode.
    CordaIpm = "corda-ipm": super::corda::Corda(super::corda::Part::First);
    /// See [`corda`](super::corda): the knowledge-preserved mode.
    CordaKpm = "corda-kpm": super::corda::Corda(super::corda::Part::Last);
    /// See [`sc_lora`](super::sc_lora).
    ScLora = "sc-lora": super::sc_lora::ScLora;
    /// See [`astra`](super::astra).
    Astra = "astra": super::astra::Astra;
    /// See [`lora_null`](super::lora_null).
    LoraNull = "lora-null": super::lora_null::LoraNull;
    /// See [`eva`](super::eva).
    Eva = "eva": super::eva::Eva;
    /// See [`lora`](super::lora): `A` by Kaiming's rule.
    Lora = "lora": super::lora::Lora(super::lora::Down::Kaiming);
    /// See [`lora`](super::lora): a normally distributed `A`.
    Gaussian = "gaussian": super::lora::Lora(super::lora::Down::Gaussian);
    /// See [`orthogonal`](super::orthogonal).
    Orthogonal = "orthogonal": super::orthogonal::Orthogonal;
}

impl Method {
    /// A description in one line.
    pub fn description(self) -> &'static str {
        self.definition().description()
    }

    /// The starts that the method has, the default first.
    pub fn starts(self) -> &'static [Start] {
        self.definition().starts()
    }

    /// True if the method uses activations. The others use weights alone.
    pub fn reads_activations(self) -> bool {
        self.definition().uses() != Uses::Weights
    }

    /// True if the method uses pre-training activations.
    pub fn reads_source(self) -> bool {
        match self.definition().uses() {
            Uses::Source | Uses::Both | Uses::Constraints => true,
            Uses::Weights | Uses::Target => false,
        }
    }

    /// True if the method cannot do without pre-training activations.
    pub fn needs_source(self) -> bool {
        matches!(self.definition().uses(), Uses::Source | Uses::Both)
    }

    /// True if the method uses pre-training activations and no fine-tuning ones.
    pub fn reads_only_source(self) -> bool {
        self.definition().uses() == Uses::Source
    }

    /// True if the method has the options of [`Terms`](crate::constraint::Terms) and [`Norm`](crate::constraint::Norm).
    pub fn has_constraints(self) -> bool {
        self.definition().uses() == Uses::Constraints
    }

    /// True if the method weighs pre-training against fine-tuning activations with [`Options::beta`](super::Options::beta).
    pub fn has_beta(self) -> bool {
        self.definition().has_beta()
    }

    /// True if training must not change `B`.
    pub fn keeps_up(self) -> bool {
        self.definition().keeps_up()
    }

    /// The reason why the method does not adapt layers of a shape, if it does not.
    pub fn reason_against(self, shape: &LayerShape) -> Option<&'static str> {
        self.definition().reason_against(shape)
    }

    /// True if the method damps the second moment.
    pub fn has_ridge(self) -> bool {
        self.definition().has_ridge()
    }

    /// How the method chooses ranks.
    pub fn rank_rule(self) -> RankRule {
        self.definition().rank_rule()
    }

    /// The form of the factors of a layer of this shape.
    pub fn form(self, start: Start, shape: &LayerShape) -> Form {
        match start {
            Start::Mirrored => Form::Mirrored,
            _ => self.definition().form(start, shape),
        }
    }
}
