//! The events of a run, and the observer that receives them.

use crate::factors::LayerName;
use crate::storage::Problem;
use serde::Serialize;

/// A step of a run.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// The run starts to read the rows of a site.
    SiteStarted {
        /// The site.
        site: &'a str,
        /// Rows to read, including pre-training rows.
        rows: u64,
    },
    /// Rows were read and added to the moments of a site.
    RowsAdded {
        /// The site.
        site: &'a str,
        /// Number of rows.
        rows: u64,
    },
    /// Rows that an earlier run added. They are not read again.
    Resumed {
        /// The site.
        site: &'a str,
        /// Number of rows.
        rows: u64,
    },
    /// The moments of a site are complete. The decomposition of its layers starts.
    MomentsReady {
        /// The site.
        site: &'a str,
    },
    /// The spectrum of a layer is known.
    LayerDecomposed {
        /// The layer.
        #[serde(flatten)]
        layer: &'a LayerName,
    },
    /// The activations of a site cannot be used. Its layers get no adapter, and the run continues.
    SiteLeftOut {
        /// The site.
        site: &'a str,
        /// The modules without an adapter.
        modules: &'a [String],
        /// The reason, in words.
        reason: &'a str,
    },
    /// Information for the user that does not stop the run.
    Warning {
        /// The text.
        message: String,
    },
}

/// Receives the events of a run, from several threads.
pub trait Observer: Sync {
    /// Receives one event.
    fn event(&self, event: Event<'_>);

    /// Returns whether the run must stop early. The run then finishes the current block or layer, saves its progress if it has a
    /// folder for it, and ends with a problem of the category [`Interrupted`](crate::storage::Category::Interrupted).
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Ignores all events.
impl Observer for () {
    fn event(&self, _event: Event<'_>) {}
}

/// Returns an error if the observer requests a stop.
pub(super) fn check_stop(observer: &dyn Observer) -> Result<(), Problem> {
    match observer.stop_requested() {
        true => Err(Problem::interrupted("interrupted")),
        false => Ok(()),
    }
}
