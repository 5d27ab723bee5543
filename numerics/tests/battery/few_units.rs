//! Ranks above that of the update: units without a singular value must be trainable, and must not change the product.

use crate::inputs::{Activations, Weight};
use crate::oracle::{Matrix, norm};
use crate::subject::{self, MIRRORED, units_per_component};
use cntlora_numerics::factors::Start;
use cntlora_numerics::method::Method;

/// Rows of `A` that belong to a column of zeros in `B`.
fn directions(up: &Matrix, down: &Matrix) -> Vec<usize> {
    (0..down.rows).filter(|i| norm(&up.column(*i)) == 0.0).collect()
}

/// Weights of rank 0, 1 and 2 with adapters of rank 4: the extra units have zeros in `B`, and in `A` unit rows that are orthogonal to all
/// other rows.
#[test]
fn units_without_a_singular_value_can_be_trained() {
    for (weight, rank) in
        [(Weight::Zero, 0), (Weight::Ones, 1), (Weight::Integers, 2), (Weight::FewOutputs, 2)]
    {
        for (method, start) in [
            (Method::Cntlora, Start::Update),
            (Method::Cntlora, Start::Residual),
            (Method::Pissa, Start::Residual),
            (Method::CordaIpm, Start::Residual),
        ] {
            let target = Activations { offset: 0.5, ..Activations::plain(200, 12) }.draw(3);
            let options = subject::options(method, start, 4);
            let made = subject::answer(&target, None, &weight.draw(9, 12, 4), &options).unwrap();
            let label = format!("{weight:?}, {} {}", method.name(), start.name());
            let empty = directions(&made.up, &made.down);
            assert_eq!(empty, (rank..4).collect::<Vec<_>>(), "{label}");
            for &i in &empty {
                for j in 0..4 {
                    let overlap: f64 = crate::oracle::dot(made.down.row(i), made.down.row(j));
                    let wanted = if i == j { 1.0 } else { 0.0 };
                    let length = norm(made.down.row(j));
                    assert!(
                        length > 0.0 && (overlap / length - wanted).abs() < 1e-5,
                        "{label}: {i} {j} {overlap}"
                    );
                }
            }
        }
    }
}

/// The same for mirrored factors: no row of `A` is zero, so that each unit can be trained.
#[test]
fn mirrored_units_without_a_singular_value_can_be_trained() {
    let Some(start) = MIRRORED else { return };
    for weight in [Weight::Zero, Weight::Ones, Weight::Integers, Weight::FewOutputs] {
        let target = Activations { offset: 0.5, ..Activations::plain(200, 12) }.draw(3);
        let options = subject::options(Method::Cntlora, start, 4 * units_per_component(start));
        let made = subject::answer(&target, None, &weight.draw(9, 12, 4), &options).unwrap();
        assert!((0..made.down.rows).all(|i| norm(made.down.row(i)) > 0.0), "{weight:?}");
        assert_eq!(made.up.times(&made.down).largest(), 0.0, "{weight:?}");
    }
}
