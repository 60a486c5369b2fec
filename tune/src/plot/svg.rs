//! The little of SVG that the plots need. Colours of text and lines follow the reader's light or dark scheme; those of
//! data are in the middle, and stand out on both.

use std::fmt::{Display, Write};

/// The look of all plots. Who knows no schemes sees the light one.
const STYLE: &str = "\
text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif;fill:#30343b}\
.over{paint-order:stroke;stroke:#ffffff;stroke-width:3px;stroke-linejoin:round}.title{font-size:15px;font-weight:600}.small{font-size:10.5px}.faint{fill:#6b7280}\
.ground{fill:#ffffff}.grid{stroke:#e3e5e9;stroke-width:1}.axis{stroke:#8b919c;stroke-width:1}\
.strong{stroke:#30343b;stroke-width:1.6;fill:none}\
@media(prefers-color-scheme:dark){text{fill:#d6d9df}.faint{fill:#949ba8}.over{stroke:#15171c}.ground{fill:#15171c}\
.grid{stroke:#2a2e37}.axis{stroke:#6b7280}.strong{stroke:#e6e8ec}}";

/// A picture under construction.
pub(super) struct Canvas {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text begins, or ends.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a mark looks, and what it says when pointed at.
pub(super) struct Look<'a> {
    pub(super) colour: &'a str,
    pub(super) opacity: f64,
    pub(super) tip: String,
}

impl Canvas {
    pub(super) fn new(width: f64, height: f64, title: &str, subtitle: &str) -> Self {
        let mut canvas = Canvas { width, height, body: String::new() };
        canvas.text(16.0, 24.0, Anchor::Start, "title", title);
        canvas.text(16.0, 42.0, Anchor::Start, "small faint", subtitle);
        canvas
    }

    /// Writing to a string does not fail.
    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(element);
        self.body.push('\n');
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let (x, y, text) = (pixel(x), pixel(y), escaped(text));
        self.put(format_args!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" class=\"{class}\">{text}</text>"
        ));
    }

    /// Text that reads upwards around its middle.
    pub(super) fn upright(&mut self, x: f64, y: f64, text: &str) {
        let (x, y, text) = (pixel(x), pixel(y), escaped(text));
        self.put(format_args!(
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\" class=\"faint\" transform=\"rotate(-90 {x} {y})\">{text}</text>"
        ));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(pixel);
        self.put(format_args!("<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" class=\"{class}\"/>"));
    }

    /// A line through points in the data's colours.
    pub(super) fn path(&mut self, points: &[(f64, f64)], width: f64, look: &Look<'_>) {
        let (d, tip, Look { colour, opacity, .. }) = (through(points), tip(&look.tip), look);
        self.put(format_args!(
            "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-opacity=\"{opacity:.2}\" \
             stroke-linejoin=\"round\">{tip}</path>"
        ));
    }

    /// A line through points in the text's colour.
    pub(super) fn strong(&mut self, points: &[(f64, f64)]) {
        let d = through(points);
        self.put(format_args!("<path d=\"{d}\" class=\"strong\"/>"));
    }

    pub(super) fn dot(&mut self, (x, y): (f64, f64), radius: f64, look: &Look<'_>) {
        let (x, y, tip, Look { colour, opacity, .. }) = (pixel(x), pixel(y), tip(&look.tip), look);
        self.put(format_args!(
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{colour}\" fill-opacity=\"{opacity:.2}\">{tip}</circle>"
        ));
    }

    pub(super) fn rect(&mut self, corner: (f64, f64), size: (f64, f64), look: &Look<'_>) {
        let [x, y, w, h] = [corner.0, corner.1, size.0.max(0.5), size.1.max(0.5)].map(pixel);
        let (tip, Look { colour, opacity, .. }) = (tip(&look.tip), look);
        self.put(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"{colour}\" fill-opacity=\"{opacity:.2}\">{tip}</rect>"
        ));
    }

    /// Coloured squares and what they stand for, from the right edge leftwards.
    pub(super) fn legend(&mut self, entries: &[(&str, &str)]) {
        let mut x = self.width - 16.0;
        for (name, colour) in entries.iter().rev() {
            self.text(x, 24.0, Anchor::End, "small", name);
            x -= length(name) + 14.0;
            self.rect((x, 15.0), (9.0, 9.0), &Look { colour, opacity: 1.0, tip: String::new() });
            x -= 12.0;
        }
    }

    /// In place of a plot for which there is nothing to show.
    pub(super) fn nothing(&mut self, why: &str) {
        self.text(self.width / 2.0, self.height / 2.0, Anchor::Middle, "faint", why);
    }

    pub(super) fn finish(self) -> String {
        let Canvas { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\">\n<style>{STYLE}</style>\n<rect class=\"ground\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n"
        )
    }
}

/// About how wide a small text is.
pub(super) fn length(text: &str) -> f64 {
    text.chars().count() as f64 * 5.9
}

/// Text in at most so many characters; what does not fit loses its beginning, as paths differ at their ends.
pub(super) fn short(text: &str, most: usize) -> String {
    let count = text.chars().count();
    match count <= most {
        true => text.to_owned(),
        false => std::iter::once('…').chain(text.chars().skip(count - most + 1)).collect(),
    }
}

/// From the best (0) over the middle to the worst (1).
pub(super) fn ramp(place: f64) -> String {
    const STOPS: [[f64; 3]; 3] = [[224.0, 112.0, 32.0], [58.0, 148.0, 160.0], [98.0, 104.0, 178.0]];
    let at = place.clamp(0.0, 1.0) * 2.0;
    let (from, part) = (at.floor().min(1.0) as usize, at - at.floor().min(1.0));
    let mixed = |k: usize| (STOPS[from][k] + (STOPS[from + 1][k] - STOPS[from][k]) * part).round() as u8;
    format!("#{:02x}{:02x}{:02x}", mixed(0), mixed(1), mixed(2))
}

/// The states of trials and their colours.
pub(super) const STATES: [(&str, &str); 6] = [
    ("done", "#2a9d74"),
    ("stopped", "#8b93a3"),
    ("failed", "#d64f45"),
    ("running", "#4a7fd6"),
    ("paused", "#c99a1c"),
    ("interrupted", "#a568c4"),
];

/// A state's colour.
pub(super) fn state(name: &str) -> &'static str {
    STATES.iter().find(|(known, _)| *known == name).map_or("#8b93a3", |(_, colour)| colour)
}

fn through(points: &[(f64, f64)]) -> String {
    let mut d = String::new();
    for (at, (x, y)) in points.iter().enumerate() {
        let _ = write!(d, "{}{} {}", if at == 0 { "M" } else { "L" }, pixel(*x), pixel(*y));
    }
    d
}

/// A tenth of a pixel is fine enough.
fn pixel(value: f64) -> impl Display {
    (value * 10.0).round() / 10.0
}

fn tip(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(text)) }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML in any form.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
