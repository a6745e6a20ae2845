//! Format specifications of one value: width, sign, digits; and the reader of formats.

use minijinja::{Error, State};

use super::text::{charge, exponential, float, invalid};

/// Maximum width and number of digits.
const WIDEST: usize = 50_000;

/// A format specification.
#[derive(Clone, Default)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    pub(super) is_alternate: bool,
    pub(super) width: usize,
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    pub(super) kind: Option<char>,
}

impl Spec {
    /// Pads to the width; `prefix` is a sign or `0x`, after which zeros are inserted.
    fn padded(&self, state: &State, prefix: &str, body: &str, default: char) -> Result<String, Error> {
        let missing = self.width.saturating_sub(prefix.chars().count() + body.chars().count());
        let fill = self.fill.unwrap_or(' ');
        charge(state, prefix.len() + body.len() + missing * fill.len_utf8())?;
        let fill = |count: usize| fill.to_string().repeat(count);
        Ok(match self.align.unwrap_or(default) {
            '<' => format!("{prefix}{body}{}", fill(missing)),
            '^' => format!("{}{prefix}{body}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => format!("{prefix}{}{body}", fill(missing)),
            _ => format!("{}{prefix}{body}", fill(missing)),
        })
    }

    pub(super) fn text(&self, state: &State, text: &str) -> Result<String, Error> {
        if self.sign.is_some() || self.is_alternate || self.align == Some('=') || self.grouping.is_some() {
            return Err(invalid("a text has no sign, digits or groups"));
        }
        match self.precision {
            Some(most) => self.padded(state, "", &text.chars().take(most).collect::<String>(), '<'),
            None => self.padded(state, "", text, '<'),
        }
    }

    fn sign(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        }
    }

    pub(super) fn whole(&self, state: &State, value: i128) -> Result<String, Error> {
        let size = value.unsigned_abs();
        let (before, digits, group) = match self.kind.unwrap_or('d') {
            'x' => ("0x", format!("{size:x}"), 4),
            'X' => ("0X", format!("{size:X}"), 4),
            'o' => ("0o", format!("{size:o}"), 4),
            'b' => ("0b", format!("{size:b}"), 4),
            _ => ("", size.to_string(), 3),
        };
        let before = if self.is_alternate { before } else { "" };
        let digits = match self.precision {
            Some(least) => format!("{}{digits}", "0".repeat(least.saturating_sub(digits.len()))),
            None => digits,
        };
        self.padded(state, &format!("{}{before}", self.sign(value < 0)), &self.grouped(&digits, group), '>')
    }

    pub(super) fn real(&self, state: &State, value: f64) -> Result<String, Error> {
        let (size, kind) = (value.abs(), self.kind.unwrap_or('r'));
        let precision = self.precision;
        let body = match kind {
            _ if !value.is_finite() => float(size),
            'f' | 'F' => format!("{size:.*}", precision.unwrap_or(6)),
            '%' => format!("{:.*}%", precision.unwrap_or(6), size * 100.0),
            'e' | 'E' => exponential(&format!("{size:.*e}", precision.unwrap_or(6))),
            'g' | 'G' | 'n' => general(size, precision.unwrap_or(6), self.is_alternate),
            _ => match precision {
                None => float(size),
                Some(precision) => match general(size, precision, self.is_alternate) {
                    whole if whole.chars().all(|c| c.is_ascii_digit()) => format!("{whole}.0"),
                    other => other,
                },
            },
        };
        let body = if kind.is_ascii_uppercase() { body.to_uppercase() } else { body };
        let (digits, rest) = body.split_at(body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len()));
        let body = format!("{}{rest}", self.grouped(digits, 3));
        self.padded(state, self.sign(value.is_sign_negative() && !value.is_nan()), &body, '>')
    }

    fn grouped(&self, digits: &str, group: usize) -> String {
        let Some(separator) = self.grouping else { return digits.to_owned() };
        let mut out = String::new();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(group) {
                out.push(separator);
            }
            out.push(digit);
        }
        out
    }
}

/// `%g`: the given number of digits, fixed or with an exponent, without trailing zeros.
fn general(size: f64, precision: usize, is_alternate: bool) -> String {
    let precision = precision.max(1);
    let with_exponent = format!("{size:.*e}", precision - 1);
    let exponent: i64 = with_exponent.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let digits = i64::try_from(precision).unwrap_or(i64::MAX);
    if (-4..digits).contains(&exponent) {
        let places = usize::try_from(digits - 1 - exponent).unwrap_or(0);
        return without_zeros(&format!("{size:.places$}"), is_alternate).to_owned();
    }
    let (digits, exponent) = with_exponent.split_once('e').unwrap_or((&with_exponent, "0"));
    exponential(&format!("{}e{exponent}", without_zeros(digits, is_alternate)))
}

fn without_zeros(digits: &str, is_alternate: bool) -> &str {
    match digits.contains('.') && !is_alternate {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    }
}

/// Reads the characters of a format.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    pub(super) fn skip(&mut self, c: char) -> bool {
        self.rest.strip_prefix(c).map(|rest| self.rest = rest).is_some()
    }

    /// The text before the next of these characters, or before the end.
    pub(super) fn until(&mut self, stops: &[char]) -> &'a str {
        let (before, rest) = self.rest.split_at(self.rest.find(stops).unwrap_or(self.rest.len()));
        self.rest = rest;
        before
    }

    pub(super) fn number(&mut self) -> Result<Option<usize>, Error> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(end);
        self.rest = rest;
        if digits.is_empty() {
            return Ok(None);
        }
        sized(digits.parse::<usize>().ok()).map(Some)
    }
}

pub(super) fn sized(number: Option<usize>) -> Result<usize, Error> {
    let too_large = || invalid(format!("a width or precision is more than {WIDEST}"));
    number.filter(|number| *number <= WIDEST).ok_or_else(too_large)
}
