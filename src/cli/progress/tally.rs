//! Counts events and compares them with the plan. Draws nothing and reads no clock.

use crate::factors::LayerName;
use crate::plan::{Measurement, Plan, PlannedSite, Work};
use crate::report::format::duration;
use crate::run::Event;
use crate::storage::visible;
use std::collections::BTreeMap;
use std::time::Duration;

/// The progress of a plan.
pub(crate) struct Tally {
    sites: BTreeMap<String, Site>,
    site_of_layer: BTreeMap<LayerName, String>,
    rows_done: u64,
    layers: usize,
    layers_done: usize,
    /// Floating-point operations.
    work: f64,
    work_done: f64,
    /// Done by an earlier run. It does not count for the speed of this one.
    rows_resumed: u64,
    work_resumed: f64,
    /// Peak rate of the processor, in floating-point operations per second.
    peak: f64,
}

struct Site {
    rows: u64,
    rows_done: u64,
    layers: usize,
    layers_done: usize,
    work_per_row: f64,
    work_per_layer: f64,
}

impl Tally {
    /// The start of a run on these sites of a plan.
    pub(crate) fn of_sites(plan: &Plan, sites: &[&PlannedSite], peak: f64) -> Self {
        let layers = sites
            .iter()
            .flat_map(|site| site.layers.iter().map(|layer| (layer.name.clone(), site.name.clone())));
        let sites = sites.iter().map(|site| {
            (site.name.clone(), Site::new(site.rows_to_read, site.layers.len(), plan.site_work(site)))
        });
        Self::new(sites.collect(), layers.collect(), peak)
    }

    /// The start of a measurement, which has no layers.
    pub(crate) fn of_measurement(measurement: &Measurement, peak: f64) -> Self {
        let sites = measurement.sites.iter().map(|site| {
            let work = Work { moments: site.work(), factors: 0.0 };
            (site.name.clone(), Site::new(site.rows_to_read(), 0, work))
        });
        Self::new(sites.collect(), BTreeMap::new(), peak)
    }

    fn new(sites: BTreeMap<String, Site>, site_of_layer: BTreeMap<LayerName, String>, peak: f64) -> Self {
        let work =
            |site: &Site| site.work_per_row * site.rows as f64 + site.work_per_layer * site.layers as f64;
        Self {
            site_of_layer,
            rows_done: 0,
            layers: sites.values().map(|site| site.layers).sum(),
            layers_done: 0,
            work: sites.values().map(work).sum(),
            work_done: 0.0,
            rows_resumed: 0,
            work_resumed: 0.0,
            peak,
            sites,
        }
    }

    /// Counts an event, and returns the name of its site.
    pub(crate) fn count<'a>(&'a mut self, event: &Event<'a>) -> Option<&'a str> {
        match *event {
            Event::SiteStarted { site, .. } | Event::MomentsReady { site } => Some(site),
            Event::RowsAdded { site, rows } => {
                self.add_rows(site, rows);
                Some(site)
            }
            Event::Resumed { site, rows } => {
                self.rows_resumed += rows;
                self.work_resumed += self.add_rows(site, rows);
                Some(site)
            }
            // The rest of its work is not done.
            Event::SiteLeftOut { site, .. } => {
                if let Some(entry) = self.sites.get_mut(site) {
                    let layers = std::mem::replace(&mut entry.layers, entry.layers_done) - entry.layers_done;
                    self.layers -= layers;
                    self.work_done += entry.work_per_layer * layers as f64;
                }
                Some(site)
            }
            Event::LayerDecomposed { layer } => {
                self.layers_done += 1;
                let site = self.site_of_layer.get(layer)?;
                if let Some(entry) = self.sites.get_mut(site) {
                    entry.layers_done += 1;
                    self.work_done += entry.work_per_layer;
                }
                Some(site)
            }
            _ => None,
        }
    }

    /// Counts rows of a site, and returns their work.
    fn add_rows(&mut self, site: &str, rows: u64) -> f64 {
        self.rows_done += rows;
        let Some(entry) = self.sites.get_mut(site) else { return 0.0 };
        entry.rows_done += rows;
        let work = entry.work_per_row * rows as f64;
        self.work_done += work;
        work
    }

    /// Share of the work that is done.
    pub(crate) fn share(&self) -> f64 {
        if self.work > 0.0 { (self.work_done / self.work).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// A line about the whole run. `elapsed` is the time since its start. A narrow terminal cuts off the end.
    pub(crate) fn line(&self, elapsed: Duration) -> String {
        let passed = elapsed.as_secs_f64().max(1e-3);
        let left =
            self.left(elapsed).map(|left| format!("about {} left, ", duration(left))).unwrap_or_default();
        let layers = match self.layers {
            0 => String::new(),
            layers => format!("{} of {layers} layers, ", self.layers_done),
        };
        format!(
            "{:.0} %, {left}{layers}{:.0} rows/s, {:.0} % of peak",
            100.0 * self.share(),
            (self.rows_done - self.rows_resumed) as f64 / passed,
            100.0 * (self.work_done - self.work_resumed) / passed / self.peak,
        )
    }

    /// The time until the end, at the speed so far.
    fn left(&self, elapsed: Duration) -> Option<f64> {
        let rate = (self.work_done - self.work_resumed) / elapsed.as_secs_f64();
        let left = (self.work - self.work_done).max(0.0) / rate;
        left.is_finite().then_some(left)
    }

    /// A line about a site; none if the site is done.
    pub(crate) fn site_line(&self, name: &str) -> Option<String> {
        let unfinished = |site: &&Site| site.rows_done < site.rows || site.layers_done < site.layers;
        let site = self.sites.get(name).filter(unfinished)?;
        let name = visible(name);
        Some(match site.rows_done < site.rows {
            true => format!("{name}: {} of {} rows", site.rows_done, site.rows),
            false => format!("{name}: layer {} of {}", site.layers_done + 1, site.layers),
        })
    }
}

impl Site {
    fn new(rows: u64, layers: usize, work: Work) -> Self {
        Self {
            rows,
            rows_done: 0,
            layers,
            layers_done: 0,
            work_per_row: work.moments / rows.max(1) as f64,
            work_per_layer: work.factors / layers.max(1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::testing::plan_of;
    use super::*;
    use crate::rank::Policy;

    /// All counts, rates and shares at two moments, for a plan of one site with 100 rows and two layers.
    #[test]
    fn lines_follow_the_events() {
        let plan = plan_of(Policy::Fixed(3));
        let Work { moments, factors } = plan.site_work(&plan.sites[0]);
        let work = moments + factors;
        let mut tally = Tally::of_sites(&plan, &[&plan.sites[0]], work / 10.0);
        assert_eq!(tally.count(&Event::SiteStarted { site: "in", rows: 100 }), Some("in"));
        assert_eq!(tally.site_line("in").as_deref(), Some("in: 0 of 100 rows"));
        assert!(tally.line(Duration::ZERO).ends_with("0 %, 0 of 2 layers, 0 rows/s, 0 % of peak"));

        tally.count(&Event::RowsAdded { site: "in", rows: 100 });
        assert_eq!(tally.site_line("in").as_deref(), Some("in: layer 1 of 2"));
        let share = moments / work;
        let line = tally.line(Duration::from_secs(5));
        let expected = format!(
            "{0:.0} %, about {2} left, 0 of 2 layers, 20 rows/s, {1:.0} % of peak",
            100.0 * share,
            100.0 * share * 10.0 / 5.0,
            duration(5.0 * (1.0 - share) / share),
        );
        assert_eq!(line, expected);

        for module in ["query", "value"] {
            assert_eq!(tally.count(&Event::LayerDecomposed { layer: &module.into() }), Some("in"));
        }
        assert_eq!(tally.site_line("in"), None);
        let line = tally.line(Duration::from_secs(10));
        assert_eq!(line, "100 %, about 0 ms left, 2 of 2 layers, 10 rows/s, 100 % of peak");
    }

    #[test]
    fn rows_of_an_earlier_run_do_not_count_for_the_speed() {
        let plan = plan_of(Policy::Fixed(3));
        let mut tally = Tally::of_sites(&plan, &[&plan.sites[0]], 1e9);
        tally.count(&Event::Resumed { site: "in", rows: 60 });
        assert!(tally.line(Duration::from_secs(2)).contains("0 of 2 layers, 0 rows/s, 0 % of peak"));
        tally.count(&Event::RowsAdded { site: "in", rows: 20 });
        assert!(tally.line(Duration::from_secs(2)).contains("0 of 2 layers, 10 rows/s"));
    }

    #[test]
    fn sites_that_are_left_out_count_as_done() {
        let plan = plan_of(Policy::Fixed(3));
        let mut tally = Tally::of_sites(&plan, &[&plan.sites[0]], 1e9);
        tally.count(&Event::RowsAdded { site: "in", rows: 100 });
        let (modules, reason) = (&["query".to_owned(), "value".to_owned()][..], "all activations are zero");
        assert_eq!(tally.count(&Event::SiteLeftOut { site: "in", modules, reason }), Some("in"));
        assert_eq!((tally.share(), tally.site_line("in")), (1.0, None));
        assert!(!tally.line(Duration::from_secs(2)).contains("layers"));
    }
}
