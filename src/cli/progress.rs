//! Progress on stderr: a bar on a terminal, plain lines elsewhere.

use super::args::ProgressStyle;
use super::interrupt::Interruption;
use super::terminal::Terminal;
use cntlora::run::{Event, Observer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle as BarStyle};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Time between two plain lines, and before the first.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Shows what happens during a run.
pub struct Progress<'a> {
    terminal: &'a Terminal,
    interruption: &'a Interruption,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Plain(Mutex<Lines>),
    Nothing,
}

impl<'a> Progress<'a> {
    /// Starts the display of a run that is about to read this many rows.
    pub fn new(terminal: &'a Terminal, interruption: &'a Interruption, rows: u64) -> Self {
        let display = match terminal.progress() {
            ProgressStyle::Bar => Display::Bar(bar(rows)),
            ProgressStyle::Plain => Display::Plain(Mutex::new(Lines::new(rows))),
            ProgressStyle::Auto | ProgressStyle::None => Display::Nothing,
        };
        Self { terminal, interruption, display }
    }

    /// Takes the display away.
    pub fn finish(self) {
        if let Display::Bar(bar) = self.display {
            bar.finish_and_clear();
        }
    }

    fn on_bar(&self, bar: &ProgressBar, event: &Event<'_>) {
        match event {
            Event::SiteStarted { site, .. } => bar.set_message(site.escape_debug().to_string()),
            Event::RowsAdded { rows, .. } | Event::Resumed { rows, .. } => bar.inc(*rows),
            Event::MomentsReady { site } => bar.set_message(format!("{} (factors)", site.escape_debug())),
            _ => {}
        }
    }
}

impl Observer for Progress<'_> {
    fn event(&self, event: Event<'_>) {
        match (&event, &self.display) {
            (Event::Warning { message }, Display::Bar(bar)) => bar.suspend(|| self.terminal.warning(message)),
            (Event::Warning { message }, _) => self.terminal.warning(message),
            (_, Display::Bar(bar)) => self.on_bar(bar, &event),
            (_, Display::Plain(lines)) => {
                // A panic elsewhere ends the run anyway; until then counting goes on.
                let mut lines = lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let elapsed = lines.started.elapsed();
                if let Some(line) = lines.event(&event, elapsed) {
                    self.terminal.note(&line);
                }
            }
            (_, Display::Nothing) => {}
        }
    }

    fn stop_requested(&self) -> bool {
        self.interruption.requested()
    }
}

fn bar(rows: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(rows), ProgressDrawTarget::stderr());
    let template = "{bar:20} {human_pos}/{human_len} rows, {per_sec}, {eta} left  {wide_msg}";
    if let Ok(style) = BarStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Counts, and says a line every few seconds.
struct Lines {
    started: Instant,
    rows: u64,
    rows_done: u64,
    rows_resumed: u64,
    layers_done: usize,
    next: Duration,
}

impl Lines {
    fn new(rows: u64) -> Self {
        Self {
            started: Instant::now(),
            rows,
            rows_done: 0,
            rows_resumed: 0,
            layers_done: 0,
            next: PLAIN_INTERVAL,
        }
    }

    /// Counts an event; the line that is due after `elapsed`, if one is.
    fn event(&mut self, event: &Event<'_>, elapsed: Duration) -> Option<String> {
        let site = match event {
            Event::SiteStarted { site, .. } | Event::MomentsReady { site } => Some(*site),
            Event::RowsAdded { site, rows } => {
                self.rows_done += rows;
                Some(*site)
            }
            Event::Resumed { rows, .. } => {
                self.rows_done += rows;
                self.rows_resumed += rows;
                None
            }
            Event::LayerDecomposed { .. } => {
                self.layers_done += 1;
                None
            }
            _ => None,
        };
        if elapsed < self.next {
            return None;
        }
        self.next = elapsed + PLAIN_INTERVAL;
        let rate = (self.rows_done - self.rows_resumed) as f64 / elapsed.as_secs_f64();
        let place = site.map(|site| format!(", at {}", site.escape_debug())).unwrap_or_default();
        Some(format!(
            "{} of {} rows, {} layers, {rate:.0} rows/s{place}",
            self.rows_done, self.rows, self.layers_done
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Short runs stay silent, long ones speak at the interval and not at every event.
    #[test]
    fn lines_come_at_the_interval() {
        let mut lines = Lines::new(2000);
        let resumed = Event::Resumed { site: "a", rows: 100 };
        assert_eq!(lines.event(&resumed, Duration::from_secs(0)), None);
        let added = Event::RowsAdded { site: "a\u{1b}b", rows: 500 };
        let decomposed = Event::LayerDecomposed { module: "q" };
        assert_eq!(lines.event(&added, Duration::from_secs(1)), None);
        let line = lines.event(&added, Duration::from_secs(5));
        assert_eq!(line.as_deref(), Some("1100 of 2000 rows, 0 layers, 200 rows/s, at a\\u{1b}b"));
        assert_eq!(lines.event(&decomposed, Duration::from_secs(9)), None);
        let line = lines.event(&decomposed, Duration::from_secs(10));
        assert_eq!(line.as_deref(), Some("1100 of 2000 rows, 2 layers, 100 rows/s"));
    }
}
