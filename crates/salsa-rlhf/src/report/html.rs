//! HTML and SVG output: escaping, and the colours and marks that identify a series on the whole page.

use std::fmt::Write;

/// Escapes `text` for HTML text and quoted attributes. Characters that HTML forbids become U+FFFD.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Arms with the same look in every report.
const KNOWN: [&str; 5] = ["sft_a", "sft_b", "soup", "ppo", "salsa"];

/// Number of colours in the palette.
const COLOURS: usize = 12;

/// The look of a series: its index in the palette (`--c0` … `--c11`) determines colour and shape, so that colour is
/// never the only difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look(usize);

/// Whether a mark is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// Filled with the series' colour.
    Solid,
    /// Filled with the background, outlined in the series' colour.
    Hollow,
}

impl Look {
    /// The look of the arm `key` at index `place`: known arms look the same in every report.
    pub(super) fn of(key: &str, place: usize) -> Look {
        Look(KNOWN.iter().position(|&k| k == key).unwrap_or(KNOWN.len() + place % 3))
    }

    /// The same if there are many arms that are not known, of which this is the one at `place`.
    pub(super) fn among_many(key: &str, place: usize) -> Look {
        Look(KNOWN.iter().position(|&k| k == key).unwrap_or(KNOWN.len() + place % (COLOURS - KNOWN.len())))
    }

    /// Whether the arm looks the same in every report.
    pub(super) fn is_known(key: &str) -> bool {
        KNOWN.contains(&key)
    }

    /// The CSS class that sets the colour.
    pub(super) fn class(self) -> String {
        format!("c{}", self.0)
    }

    /// Renders the series' mark, centred on `(x, y)`, `size` pixels in radius, with a hover text unless that is empty.
    pub(super) fn mark(self, x: f64, y: f64, size: f64, fill: Fill, hover: &str) -> String {
        let (s, d) = (size * 0.9, size * 1.25);
        let path = match self.0 {
            4 => format!("M{x} {}L{} {y}L{x} {}L{} {y}Z", y - d, x + d, y + d, x - d),
            1 | 6 | 9 => format!("M{} {}h{w}v{w}h-{w}Z", x - s, y - s, w = 2.0 * s),
            2 | 7 | 10 => format!("M{x} {}L{} {}H{}Z", y - d, x + d, y + s, x - d),
            _ => format!("M{} {y}a{size} {size} 0 1 0 {w} 0a{size} {size} 0 1 0 -{w} 0Z", x - size, w = 2.0 * size),
        };
        let fill = if fill == Fill::Solid { "mark" } else { "mark hollow" };
        let mut out = String::new();
        let _ = write!(out, r#"<path class="{fill} {}" d="{path}">"#, self.class());
        if !hover.is_empty() {
            let _ = write!(out, "<title>{}</title>", escape(hover));
        }
        out + "</path>"
    }
}

/// Renders a legend: marks with their names.
pub(super) fn legend(entries: &[(Look, Fill, String)]) -> String {
    let mut out = String::from(r#"<ul class="legend">"#);
    for (look, fill, name) in entries {
        let mark = look.mark(7.0, 7.0, 4.5, *fill, "");
        let _ = write!(
            out,
            r#"<li><svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{mark}</svg>{}</li>"#,
            escape(name)
        );
    }
    out + "</ul>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_defused() {
        assert_eq!(escape("<script>\"&'\u{0}\n</script>"), "&lt;script&gt;&quot;&amp;&#39;\u{fffd}\n&lt;/script&gt;");
        assert_eq!(escape("Grüße 🌶"), "Grüße 🌶");
    }

    #[test]
    fn known_arms_keep_their_look_and_others_differ() {
        assert_eq!(Look::of("salsa", 0), Look::of("salsa", 3));
        assert_ne!(Look::of("mkl", 0), Look::of("ema", 1));
        assert!(["sft_a", "ppo", "salsa"].iter().all(|k| Look::of(k, 0) != Look::of("mkl", 0)));
    }
}
