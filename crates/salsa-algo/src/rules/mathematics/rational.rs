//! Rational numbers of 128 bits. What does not fit is refused, never rounded.

/// Why something is refused.
pub(super) type Reading<T> = Result<T, String>;

const TOO_LARGE: &str = "a number beyond 128 bits";

/// `numerator / denominator` in lowest terms; the denominator is positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rational {
    pub(super) numerator: i128,
    pub(super) denominator: i128,
}

fn gcd(mut a: i128, mut b: i128) -> i128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a.abs()
}

fn fits(number: Option<i128>) -> Reading<i128> {
    number.filter(|&number| number != i128::MIN).ok_or_else(|| TOO_LARGE.into())
}

impl Rational {
    pub(super) const ZERO: Rational = Rational::whole(0);
    pub(super) const ONE: Rational = Rational::whole(1);

    pub(super) const fn whole(numerator: i128) -> Rational {
        Rational { numerator, denominator: 1 }
    }

    pub(super) fn new(numerator: i128, denominator: i128) -> Reading<Rational> {
        if denominator == 0 {
            return Err("a division by zero".into());
        }
        let common = gcd(numerator, denominator).max(1) * denominator.signum();
        Ok(Rational { numerator: numerator / common, denominator: denominator / common })
    }

    pub(super) fn is_zero(self) -> bool {
        self.numerator == 0
    }

    /// The number, if it is whole.
    pub(super) fn to_whole(self) -> Option<i128> {
        (self.denominator == 1).then_some(self.numerator)
    }

    pub(super) fn negated(self) -> Rational {
        Rational { numerator: -self.numerator, denominator: self.denominator }
    }

    pub(super) fn plus(self, other: Rational) -> Reading<Rational> {
        let common = gcd(self.denominator, other.denominator);
        let (own, others) = (other.denominator / common, self.denominator / common);
        let left = fits(self.numerator.checked_mul(own))?;
        let right = fits(other.numerator.checked_mul(others))?;
        Rational::new(fits(left.checked_add(right))?, fits(self.denominator.checked_mul(own))?)
    }

    pub(super) fn times(self, other: Rational) -> Reading<Rational> {
        // Crosswise in lowest terms first: products stay as small as the result.
        let (a, b) = (gcd(self.numerator, other.denominator).max(1), gcd(other.numerator, self.denominator).max(1));
        let numerator = fits((self.numerator / a).checked_mul(other.numerator / b))?;
        Rational::new(numerator, fits((self.denominator / b).checked_mul(other.denominator / a))?)
    }

    pub(super) fn inverse(self) -> Reading<Rational> {
        Rational::new(self.denominator, self.numerator)
    }

    /// A whole power, by squaring; stops at the first number that does not fit.
    pub(super) fn power(self, exponent: i128) -> Reading<Rational> {
        let mut base = if exponent < 0 { self.inverse()? } else { self };
        let mut left = exponent.unsigned_abs();
        let mut result = Rational::ONE;
        while left > 0 {
            if left & 1 == 1 {
                result = result.times(base)?;
            }
            left >>= 1;
            if left > 0 {
                base = base.times(base)?;
            }
        }
        Ok(result)
    }

    /// Reads digits with at most one point and an optional exponent: `12`, `.5`, `3.`, `1.5e3`.
    pub(super) fn read(text: &str) -> Reading<Rational> {
        let (digits, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let fraction = fraction.trim_end_matches('0');
        let mut numerator = 0i128;
        for digit in whole.bytes().chain(fraction.bytes()) {
            let digit = i128::from(digit.wrapping_sub(b'0'));
            numerator = fits(numerator.checked_mul(10).and_then(|number| number.checked_add(digit)))?;
        }
        let exponent: i128 = exponent.parse().map_err(|_| TOO_LARGE.to_string())?;
        let places = i128::try_from(fraction.len()).map_err(|_| TOO_LARGE.to_string())?;
        let exponent = fits(exponent.checked_sub(places))?;
        if numerator == 0 {
            return Ok(Rational::ZERO);
        }
        Rational::whole(10).power(exponent)?.times(Rational::whole(numerator))
    }

    pub(super) fn approximate(self) -> f64 {
        self.numerator as f64 / self.denominator as f64
    }
}

/// Below the square of this, what is left after trial division is prime.
const TRIAL: u128 = 1 << 17;

/// Prime factors of a positive number with their exponents.
pub(super) fn factors(number: i128) -> Reading<Vec<(i128, i128)>> {
    let mut left = number.unsigned_abs();
    let mut found = Vec::new();
    let mut divisor = 2u128;
    while divisor < TRIAL && divisor * divisor <= left {
        let mut count = 0;
        // Quotients of 64 bits are several times faster than those of 128.
        while divides(divisor, left) {
            left /= divisor;
            count += 1;
        }
        if count > 0 {
            found.push((divisor as i128, count));
        }
        divisor += if divisor == 2 { 1 } else { 2 };
    }
    if left >= TRIAL * TRIAL {
        return Err("a number whose prime factors are too large".into());
    }
    if left > 1 {
        found.push((left as i128, 1));
    }
    Ok(found)
}

fn divides(divisor: u128, number: u128) -> bool {
    match u64::try_from(number) {
        Ok(number) => number.is_multiple_of(divisor as u64),
        Err(_) => number.is_multiple_of(divisor),
    }
}
