//! Names: functions, Greek letters, units, words for numbers, and characters that stand for others.

/// Functions and constructs that a name without a backslash may mean too.
pub(super) const FUNCTIONS: [&str; 23] = [
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "log", "ln", "lg",
    "exp", "sqrt", "frac", "binom", "abs", "floor", "ceil", "overline",
];

/// Commands that are variables.
pub(super) const LETTERS: [&str; 36] = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "vartheta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Xi",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
    "ell",
    "hbar",
];

/// Units with all their names; the first names the unit.
const UNITS: [&[&str]; 38] = [
    &["mm", "millimeter", "millimeters", "millimetre", "millimetres"],
    &["cm", "centimeter", "centimeters", "centimetre", "centimetres"],
    &["m", "meter", "meters", "metre", "metres"],
    &["km", "kilometer", "kilometers", "kilometre", "kilometres", "kms"],
    &["in", "inch", "inches"],
    &["ft", "foot", "feet"],
    &["yd", "yard", "yards", "yds"],
    &["mi", "mile", "miles"],
    &["mg", "milligram", "milligrams"],
    &["g", "gram", "grams"],
    &["kg", "kilogram", "kilograms", "kgs"],
    &["lb", "pound", "pounds", "lbs"],
    &["oz", "ounce", "ounces"],
    &["ton", "tons"],
    &["ml", "milliliter", "milliliters", "millilitre", "millilitres"],
    &["l", "liter", "liters", "litre", "litres"],
    &["gal", "gallon", "gallons"],
    &["s", "sec", "secs", "second", "seconds"],
    &["min", "mins", "minute", "minutes"],
    &["h", "hr", "hrs", "hour", "hours"],
    &["day", "days"],
    &["week", "weeks"],
    &["month", "months"],
    &["year", "years"],
    &["mph"],
    &["kph", "kmh"],
    &["cent", "cents"],
    &["dollar", "dollars", "usd"],
    &["euro", "euros", "eur"],
    &["degree", "degrees", "deg"],
    &["radian", "radians", "rad"],
    &["°c", "celsius"],
    &["°f", "fahrenheit"],
    &["unit", "units"],
    &["am", "a.m."],
    &["pm", "p.m."],
    &["percent", "pct"],
    &["hz", "hertz"],
];

/// Words that multiply the number before them.
const SCALES: [(&str, i128); 6] = [
    ("dozen", 12),
    ("hundred", 100),
    ("thousand", 1_000),
    ("million", 1_000_000),
    ("billion", 1_000_000_000),
    ("trillion", 1_000_000_000_000),
];

/// The unit's own name, if it is known.
pub(super) fn unit(word: &str) -> Option<&'static str> {
    UNITS.iter().find(|names| names.contains(&word)).map(|names| names[0])
}

/// Whether a run of two letters or more is a unit wherever it stands.
pub(super) fn is_unit(word: &str) -> bool {
    word.len() > 1 && unit(word).is_some()
}

pub(super) fn scale(word: &str) -> Option<i128> {
    SCALES.iter().find(|(name, _)| *name == word).map(|&(_, by)| by)
}

/// A character of mathematics or typography as its plain one.
pub(super) fn unicode(character: char) -> char {
    match character {
        '\u{2212}' | '\u{2013}' | '\u{2014}' | '\u{fe63}' => '-',
        '\u{d7}' | '\u{b7}' | '\u{22c5}' | '\u{2219}' | '\u{2217}' => '*',
        '\u{f7}' | '\u{2215}' | '\u{2044}' => '/',
        '\u{3001}' => ',',
        '\u{2236}' => ':',
        '\u{2248}' => '=',
        '\u{2266}' | '\u{2a7d}' => '≤',
        '\u{2267}' | '\u{2a7e}' => '≥',
        '\u{ba}' | '\u{2da}' => '°',
        '\u{3002}' => '.',
        '\u{20ac}' | '\u{a3}' | '\u{a5}' | '\u{a2}' => '$',
        // Full-width forms of ASCII.
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(character as u32 - 0xfee0).unwrap_or(character),
        other => other,
    }
}
