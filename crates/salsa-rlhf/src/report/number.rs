//! Number formatting: three significant digits, a dash for missing numbers.

use super::Estimate;

/// Placeholder of a missing or non-finite number.
pub(super) const MISSING: &str = "–";

/// Three significant digits, no exponent between 0.001 and a million: `0.731`, `12.3`, `1,234`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if !value.is_finite() => MISSING.to_owned(),
        0.0 => "0".to_owned(),
        s if !(0.000_95..999_999.5).contains(&s) => format!("{value:.2e}"),
        s if s < 0.001_95 => minus(format!("{value:.4}")),
        s if s < 0.999_5 => minus(format!("{value:.3}")),
        s if s < 9.995 => minus(format!("{value:.2}")),
        s if s < 99.95 => minus(format!("{value:.1}")),
        _ => grouped(value),
    }
}

/// A difference with its sign, three decimals below ten: `+0.018`, `−0.035`, `0.000`.
pub(super) fn signed(value: f64) -> String {
    let text = if value.abs() < 9.999_5 { fixed(value, 3) } else { number(value) };
    if value > 0.0 && text != "0.000" && value.is_finite() { format!("+{text}") } else { text }
}

/// A p value with three decimals: `0.042`, `&lt; 0.001` (as HTML).
pub(super) fn p_value(p: f64) -> String {
    if p < 0.000_5 { "&lt;\u{a0}0.001".to_owned() } else { fixed(p, 3) }
}

/// A share in [0, 1] as a percentage with one decimal: `57.2 %`.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1} %", share * 100.0) } else { MISSING.to_owned() }
}

/// `low to high`; a common percent sign is written once.
pub(super) fn ends([low, high]: [String; 2]) -> String {
    let low = low.strip_suffix(" %").filter(|_| high.ends_with(" %")).unwrap_or(&low);
    format!("{low} to {high}")
}

/// `mean (low to high)`, or only the mean if there is no interval.
pub(super) fn estimate(estimate: &Estimate, format: fn(f64) -> String) -> String {
    let mean = format(estimate.mean);
    if estimate.has_interval() { format!("{mean} ({})", ends(estimate.ci95.map(format))) } else { mean }
}

/// With a fixed number of decimals, as on an axis.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    if value.abs() >= 1000.0 && decimals == 0 { grouped(value) } else { minus(format!("{value:.decimals$}")) }
}

/// No decimals, thousands separated by commas.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0.0 { format!("−{out}") } else { out }
}

/// Uses a true minus sign, and none for zero.
fn minus(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if rest.chars().all(|c| c == '0' || c == '.') => rest.to_owned(),
        Some(rest) => format!("−{rest}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let table = [
            (0.0, "0"),
            (0.7312, "0.731"),
            (-0.7312, "−0.731"),
            (0.00123, "0.0012"),
            (0.0070, "0.007"),
            (0.0001234, "1.23e-4"),
            (9.9949, "9.99"),
            (12.345, "12.3"),
            (1234.4, "1,234"),
            (-1234567.0, "-1.23e6"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
        ];
        for (value, text) in table {
            assert_eq!(number(value), text, "{value}");
        }
    }

    #[test]
    fn p_values_have_three_decimals() {
        let table = [(0.0421, "0.042"), (0.000_86, "0.001"), (0.000_49, "&lt;\u{a0}0.001"), (1.0, "1.000")];
        table.into_iter().for_each(|(p, text)| assert_eq!(p_value(p), text));
    }

    #[test]
    fn intervals_and_shares() {
        assert_eq!(percent(0.5719), "57.2 %");
        assert_eq!(percent(f64::NAN), "–");
        assert_eq!(estimate(&Estimate::new(0.5, 0.25, 1.0), number), "0.500 (0.250 to 1.00)");
        assert_eq!(estimate(&Estimate::new(0.5, f64::NAN, f64::NAN), number), "0.500");
        let differences = [0.018, -0.035, 1.37e-5, -1e-9, 12.5, f64::NAN, f64::INFINITY].map(signed);
        assert_eq!(differences, ["+0.018", "−0.035", "0.000", "0.000", "+12.5", "–", "–"]);
        assert_eq!(fixed(-0.001, 2), "0.00");
        assert_eq!(fixed(12000.0, 0), "12,000");
    }
}
