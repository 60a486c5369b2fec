//! What the terminal can show, and what the user wants to see of it.

use std::io::IsTerminal;

/// How progress is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// A bar on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// One line that is drawn again and again.
    Bar,
    /// A line now and then.
    Plain,
    /// Nothing.
    None,
}

/// What is known of where standard error goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub(crate) is_terminal: bool,
    pub(crate) dumb: bool,
    /// `NO_COLOR` is set to something.
    pub(crate) no_color: bool,
    /// `CLICOLOR_FORCE` is set to something but 0.
    pub(crate) force_color: bool,
}

impl Terminal {
    /// As it is.
    pub(crate) fn of_stderr() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        Terminal {
            is_terminal: std::io::stderr().is_terminal(),
            dumb: set("TERM").is_some_and(|term| term == "dumb"),
            no_color: set("NO_COLOR").is_some(),
            force_color: set("CLICOLOR_FORCE").is_some_and(|force| force != "0"),
        }
    }

    /// Whether to use colours.
    pub(crate) fn colour(self) -> bool {
        !self.no_color && (self.force_color || (self.is_terminal && !self.dumb))
    }

    /// The mode that is meant.
    pub(crate) fn mode(self, wanted: Mode) -> Mode {
        match wanted {
            Mode::Auto if self.is_terminal && !self.dumb => Mode::Bar,
            Mode::Auto => Mode::Plain,
            other => other,
        }
    }
}

/// The terminal's width, or a usual one.
pub(crate) fn width() -> usize {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 100,
    }
}

/// `4.8 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// `2m41s`.
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".into();
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole / 3600 % 24),
    }
}

/// `2.1k`.
pub(crate) fn count(value: f64) -> String {
    match value.abs() {
        v if v >= 999_500.0 => format!("{:.1}M", value / 1e6),
        v if v >= 9_995.0 => format!("{:.0}k", value / 1e3),
        v if v >= 999.5 => format!("{:.1}k", value / 1e3),
        v if v >= 9.95 => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

/// A figure in as few characters as tell it.
pub(crate) fn figure(value: f64) -> String {
    let size = value.abs();
    if value.is_nan() {
        "NaN".into()
    } else if value.fract() == 0.0 && size < 1e9 {
        format!("{value:.0}")
    } else if (1e-3..1e5).contains(&size) {
        format!("{value:.4}")
    } else {
        format!("{value:.2e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_bars_are_for_terminals_unless_someone_says_otherwise() {
        let pipe = Terminal::default();
        let terminal = Terminal { is_terminal: true, ..pipe };
        assert!(!pipe.colour() && terminal.colour());
        assert!(Terminal { force_color: true, ..pipe }.colour());
        assert!(!Terminal { no_color: true, force_color: true, ..terminal }.colour());
        assert!(!Terminal { dumb: true, ..terminal }.colour());
        assert_eq!(terminal.mode(Mode::Auto), Mode::Bar);
        assert_eq!(pipe.mode(Mode::Auto), Mode::Plain);
        assert_eq!(Terminal { dumb: true, ..terminal }.mode(Mode::Auto), Mode::Plain);
        assert_eq!(pipe.mode(Mode::Bar), Mode::Bar);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([bytes(12), bytes(4_800_000), bytes(2_100_000_000)], ["12 B", "4.8 MB", "2.1 GB"]);
        assert_eq!(
            [duration(7.2), duration(161.0), duration(7300.0), duration(90_000.0)],
            ["7s", "2m41s", "2h01m", "1d01h"]
        );
        assert_eq!(
            [count(2.14), count(21.4), count(2140.0), count(21_400.0), count(2.1e6)],
            ["2.1", "21", "2.1k", "21k", "2.1M"]
        );
        assert_eq!(
            [figure(3.0), figure(0.0931), figure(1e-5), figure(f64::NAN)],
            ["3", "0.0931", "1.00e-5", "NaN"]
        );
    }
}
