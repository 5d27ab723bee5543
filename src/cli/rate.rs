//! Measures the speed of this machine, to convert work to time.

use crate::dense;
use crate::moments::Moments;
use crate::random::gaussian;
use crate::simd::{BLOCK_ROWS, Precision, Rows, Tier, Values, Workspace};
use crate::storage::Problem;
use faer::{Mat, Par};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Width of the rows and of the matrices. Larger ones would not be faster.
const WIDTH: usize = 1024;

/// Time of each of the two measurements.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// Floating-point operations per second, with a number of threads.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Rate {
    /// For Gram updates, on f32 rows in memory.
    pub(crate) moments: f64,
    /// For products of f64 matrices, as an estimate for factorizations.
    pub(crate) factors: f64,
}

impl Rate {
    /// Measures. Takes about 0.7 seconds.
    pub(crate) fn measure(threads: usize, precision: Precision) -> Result<Self, Problem> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| Problem::environment(format!("cannot start {threads} threads: {error}")))?;
        pool.install(|| Ok(Self { moments: moments(threads, precision)?, factors: factors() }))
    }
}

fn moments(threads: usize, precision: Precision) -> Result<f64, Problem> {
    let failed = |error: String| Problem::usage(error);
    let mut workspace = Workspace::new(Tier::best(), precision).map_err(|error| failed(error.to_string()))?;
    let values = gaussian::<f32>(WIDTH, BLOCK_ROWS, 0, "rate");
    // The columns of this matrix are the rows to add.
    let values: Vec<f32> =
        values.col_iter().flat_map(|column| column.iter().copied().collect::<Vec<_>>()).collect();
    let rows = Rows { values: Values::F32(&values), rows: BLOCK_ROWS, width: WIDTH, stride: WIDTH };
    let mut moments = Moments::new(WIDTH);
    let mut add = || moments.add(rows, &mut workspace, threads).map_err(|error| failed(error.to_string()));
    add()?;
    let (started, mut blocks) = (Instant::now(), 0.0);
    while started.elapsed() < LONG_ENOUGH {
        add()?;
        blocks += 1.0;
    }
    Ok(blocks * (BLOCK_ROWS * WIDTH * (WIDTH + 1)) as f64 / started.elapsed().as_secs_f64())
}

fn factors() -> f64 {
    let matrix = Mat::<f64>::identity(WIDTH, WIDTH);
    let mut product = Mat::zeros(WIDTH, WIDTH);
    let mut multiply = || {
        dense::product_into(product.as_mut(), matrix.as_ref(), matrix.as_ref(), Par::rayon(0));
    };
    multiply();
    let (started, mut products) = (Instant::now(), 0.0);
    while started.elapsed() < LONG_ENOUGH {
        multiply();
        products += 1.0;
    }
    products * 2.0 * (WIDTH as f64).powi(3) / started.elapsed().as_secs_f64()
}
