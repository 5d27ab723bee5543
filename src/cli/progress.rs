//! Progress on stderr: bars on a terminal, plain lines elsewhere.

mod tally;

use super::args::ProgressStyle;
use super::interrupt::Interruption;
use super::terminal::Terminal;
use crate::plan::{Measurement, Plan, PlannedSite};
use crate::report::text::left_out as in_words;
use crate::run::{Event, Observer};
use crate::simd::peak;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle as BarStyle};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tally::Tally;

/// Time before the first line, and between two lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Shows the progress of a run.
pub(crate) struct Progress<'a> {
    terminal: &'a Terminal,
    interruption: &'a Interruption,
    display: Option<Mutex<Display>>,
}

struct Display {
    started: Instant,
    tally: Tally,
    kind: Kind,
}

enum Kind {
    Bars(Bars),
    /// The time of the next line.
    Plain(Duration),
}

impl<'a> Progress<'a> {
    /// Starts the display for a run on these sites of a plan.
    pub(crate) fn of_sites(
        terminal: &'a Terminal,
        interruption: &'a Interruption,
        plan: &Plan,
        sites: &[&PlannedSite],
    ) -> Self {
        Self::new(terminal, interruption, plan.threads, |peak| Tally::of_sites(plan, sites, peak))
    }

    /// Starts the display for a measurement.
    pub(crate) fn of_measurement(
        terminal: &'a Terminal,
        interruption: &'a Interruption,
        measurement: &Measurement,
    ) -> Self {
        Self::new(terminal, interruption, measurement.threads, |peak| {
            Tally::of_measurement(measurement, peak)
        })
    }

    /// Measures the peak rate of the processor, which takes about ten milliseconds, if progress is shown.
    fn new(
        terminal: &'a Terminal,
        interruption: &'a Interruption,
        threads: usize,
        tally: impl FnOnce(f64) -> Tally,
    ) -> Self {
        let kind = match terminal.progress() {
            ProgressStyle::Bar => Some(Kind::Bars(Bars::new())),
            ProgressStyle::Plain => Some(Kind::Plain(PLAIN_INTERVAL)),
            ProgressStyle::Auto | ProgressStyle::None => None,
        };
        let display = kind.map(|kind| {
            let tally = tally(peak::rate(threads));
            Mutex::new(Display { started: Instant::now(), tally, kind })
        });
        Self { terminal, interruption, display }
    }

    /// Prints a warning, above the bars if there are any.
    fn warn(&self, display: Option<&Display>, words: &str) {
        match display {
            Some(Display { kind: Kind::Bars(bars), .. }) => bars.all.suspend(|| self.terminal.warning(words)),
            _ => self.terminal.warning(words),
        }
    }

    /// Removes the display.
    pub(crate) fn finish(self) {
        if let Some(display) = self.display
            && let Kind::Bars(bars) = display.into_inner().unwrap_or_else(PoisonError::into_inner).kind
        {
            bars.finish();
        }
    }
}

impl Observer for Progress<'_> {
    fn event(&self, event: Event<'_>) {
        // A panic on another thread ends the run. Until then, counting continues.
        let mut display =
            self.display.as_ref().map(|display| display.lock().unwrap_or_else(PoisonError::into_inner));
        match (&event, display.as_deref_mut()) {
            (Event::Warning { message }, display) => self.warn(display.as_deref(), message),
            (Event::SiteLeftOut { site, modules, reason }, mut display) => {
                if let Some(display) = display.as_deref_mut() {
                    let elapsed = display.started.elapsed();
                    display.event(&event, elapsed);
                }
                self.warn(display.as_deref(), &format!("left out: {}", in_words(site, modules, reason)));
            }
            (_, Some(display)) => {
                let elapsed = display.started.elapsed();
                if let Some(line) = display.event(&event, elapsed) {
                    self.terminal.note(&line);
                }
            }
            (_, None) => {}
        }
    }

    fn stop_requested(&self) -> bool {
        self.interruption.requested()
    }
}

impl Display {
    /// Counts an event and draws it. Returns a line if it is time for one.
    fn event(&mut self, event: &Event<'_>, elapsed: Duration) -> Option<String> {
        let site = self.tally.count(event).map(str::to_owned);
        let site_line = site.as_deref().and_then(|site| self.tally.site_line(site));
        match &mut self.kind {
            Kind::Bars(bars) => {
                bars.show(self.tally.share(), self.tally.line(elapsed), site, site_line);
                None
            }
            Kind::Plain(next) if elapsed >= *next => {
                *next = elapsed + PLAIN_INTERVAL;
                let place = site_line.map(|line| format!("; {line}")).unwrap_or_default();
                Some(format!("{}{place}", self.tally.line(elapsed)))
            }
            Kind::Plain(_) => None,
        }
    }
}

/// A bar for the run, and below it a line for each site that is being worked on.
struct Bars {
    all: MultiProgress,
    run: ProgressBar,
    sites: BTreeMap<String, ProgressBar>,
}

impl Bars {
    /// Number of steps of the bar.
    const LENGTH: u64 = 1000;

    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let run = all.add(styled(ProgressBar::new(Self::LENGTH), "{bar:8} {wide_msg}"));
        Self { all, run, sites: BTreeMap::new() }
    }

    /// Shows the share of the work that is done, and the line of a site. A site without a line is removed.
    fn show(&mut self, share: f64, line: String, site: Option<String>, site_line: Option<String>) {
        self.run.set_position((share * Self::LENGTH as f64) as u64);
        self.run.set_message(line);
        match (site, site_line) {
            (Some(site), Some(line)) => {
                let new = || self.all.add(styled(ProgressBar::no_length(), "  {wide_msg}"));
                self.sites.entry(site).or_insert_with(new).set_message(line);
            }
            (Some(site), None) => {
                if let Some(bar) = self.sites.remove(&site) {
                    bar.finish_and_clear();
                }
            }
            (None, _) => {}
        }
    }

    fn finish(self) {
        for bar in self.sites.values() {
            bar.finish_and_clear();
        }
        self.run.finish_and_clear();
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match BarStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::testing::plan_of;
    use super::*;
    use crate::rank::Policy;

    /// Short runs print nothing; long runs print a line per interval, not per event.
    #[test]
    fn lines_come_at_the_interval() {
        let plan = plan_of(Policy::Fixed(3));
        let tally = Tally::of_sites(&plan, &[&plan.sites[0]], 1e9);
        let mut display = Display { started: Instant::now(), tally, kind: Kind::Plain(PLAIN_INTERVAL) };
        let added = Event::RowsAdded { site: "in", rows: 25 };
        let mut line = |seconds| display.event(&added, Duration::from_secs(seconds));
        assert_eq!(line(1), None);
        let spoken = line(5).expect("a line is due");
        assert!(spoken.ends_with("; in: 50 of 100 rows"), "{spoken}");
        assert_eq!(line(9), None);
        assert!(line(10).is_some());
    }
}
