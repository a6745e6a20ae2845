//! Normal form of an expression: a quotient of sums of products of powers.
//!
//! A product is a rational coefficient times atoms with rational exponents. Exponents of primes lie in [0, 1), so roots
//! of rational numbers are linearly independent over the rational numbers (Besicovitch 1940) and zero is decided
//! exactly. Variables, pi, e and logarithms of primes count as independent of each other.

use super::rational::{Rational, Reading, factors};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Function {
    Sin,
    Cos,
    Arcsin,
    Arccos,
    Arctan,
    Ln,
    Abs,
    Floor,
    Ceiling,
    Factorial,
    /// The root of this degree of what has no simpler form.
    Root(i128),
    /// An exponent that is no sum of products.
    Whole,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Atom {
    Prime(i128),
    Imaginary,
    Pi,
    Euler,
    Variable(String),
    Apply(Function, Box<Value>),
    /// A base to the power of a product.
    Power(Box<Value>, Monomial),
}

pub(super) type Monomial = BTreeMap<Atom, Rational>;
pub(super) type Sum = BTreeMap<Monomial, Rational>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Value {
    pub(super) numerator: Sum,
    pub(super) denominator: Sum,
}

/// The most terms of a sum, and a bound on the products of terms of one multiplication.
const TERMS: usize = 512;
const WHOLE_POWER_OF_A_SUM: i128 = 64;

fn one() -> Sum {
    Sum::from([(Monomial::new(), Rational::ONE)])
}

fn add_term(sum: &mut Sum, monomial: Monomial, coefficient: Rational) -> Reading<()> {
    let old = sum.get(&monomial).copied().unwrap_or(Rational::ZERO);
    let new = old.plus(coefficient)?;
    if new.is_zero() {
        sum.remove(&monomial);
    } else {
        sum.insert(monomial, new);
    }
    if sum.len() > TERMS { Err(format!("a sum of more than {TERMS} terms")) } else { Ok(()) }
}

/// Raises the exponent of an atom; returns the coefficient that whole powers of primes and of i leave.
fn raise(monomial: &mut Monomial, atom: &Atom, by: Rational) -> Reading<Rational> {
    let old = monomial.get(atom).copied().unwrap_or(Rational::ZERO);
    let mut exponent = old.plus(by)?;
    let mut coefficient = Rational::ONE;
    match atom {
        Atom::Prime(prime) => {
            let whole = exponent.numerator.div_euclid(exponent.denominator);
            coefficient = Rational::whole(*prime).power(whole)?;
            exponent = exponent.plus(Rational::whole(-whole))?;
        }
        Atom::Imaginary => {
            let whole = exponent.to_whole().ok_or("a root of an imaginary number")?.rem_euclid(4);
            coefficient = Rational::whole(if whole >= 2 { -1 } else { 1 });
            exponent = Rational::whole(whole % 2);
        }
        _ => {}
    }
    if exponent.is_zero() {
        monomial.remove(atom);
    } else {
        monomial.insert(atom.clone(), exponent);
    }
    Ok(coefficient)
}

fn product(left: &Monomial, right: &Monomial) -> Reading<(Monomial, Rational)> {
    let (mut monomial, mut coefficient) = (left.clone(), Rational::ONE);
    for (atom, &exponent) in right {
        coefficient = coefficient.times(raise(&mut monomial, atom, exponent)?)?;
    }
    Ok((monomial, coefficient))
}

pub(super) fn multiply(left: &Sum, right: &Sum) -> Reading<Sum> {
    if left.len().saturating_mul(right.len()) > 16 * TERMS {
        return Err(format!("a product of more than {} terms", 16 * TERMS));
    }
    let mut all = Sum::new();
    for (a, &by_a) in left {
        for (b, &by_b) in right {
            let (monomial, coefficient) = product(a, b)?;
            add_term(&mut all, monomial, coefficient.times(by_a)?.times(by_b)?)?;
        }
    }
    Ok(all)
}

fn negate(sum: &Sum) -> Sum {
    sum.iter().map(|(monomial, coefficient)| (monomial.clone(), coefficient.negated())).collect()
}

impl Value {
    pub(super) fn rational(number: Rational) -> Value {
        let numerator = if number.is_zero() { Sum::new() } else { Sum::from([(Monomial::new(), number)]) };
        Value { numerator, denominator: one() }
    }

    pub(super) fn whole(number: i128) -> Value {
        Value::rational(Rational::whole(number))
    }

    pub(super) fn atom(atom: Atom) -> Value {
        let monomial = Monomial::from([(atom, Rational::ONE)]);
        Value { numerator: Sum::from([(monomial, Rational::ONE)]), denominator: one() }
    }

    pub(super) fn variable(name: &str) -> Value {
        Value::atom(Atom::Variable(name.into()))
    }

    pub(super) fn is_zero(&self) -> bool {
        self.numerator.is_empty()
    }

    /// The number, if this is a rational one.
    pub(super) fn to_rational(&self) -> Option<Rational> {
        if self.is_zero() {
            return Some(Rational::ZERO);
        }
        let (monomial, coefficient) = self.single()?;
        monomial.is_empty().then_some(coefficient)
    }

    /// Its only product, if the value is one.
    fn single(&self) -> Option<(&Monomial, Rational)> {
        let (monomial, coefficient) = self.numerator.first_key_value()?;
        (self.numerator.len() == 1 && self.denominator == one()).then_some((monomial, *coefficient))
    }

    /// Divides by a denominator of one product; else makes its first coefficient 1.
    fn quotient(numerator: Sum, denominator: Sum) -> Reading<Value> {
        let Some((monomial, coefficient)) = denominator.first_key_value() else {
            return Err("a division by zero".into());
        };
        if numerator.is_empty() {
            return Ok(Value { numerator, denominator: one() });
        }
        let mut inverse = Monomial::new();
        let mut by = coefficient.inverse()?;
        if denominator.len() == 1 {
            for (atom, exponent) in monomial {
                by = by.times(raise(&mut inverse, atom, exponent.negated())?)?;
            }
        }
        let by = Sum::from([(inverse, by)]);
        Ok(Value { numerator: multiply(&numerator, &by)?, denominator: multiply(&denominator, &by)? })
    }

    pub(super) fn plus(&self, other: &Value) -> Reading<Value> {
        let (left, right, denominator) = if self.denominator == other.denominator {
            (self.numerator.clone(), other.numerator.clone(), self.denominator.clone())
        } else {
            let left = multiply(&self.numerator, &other.denominator)?;
            let right = multiply(&other.numerator, &self.denominator)?;
            (left, right, multiply(&self.denominator, &other.denominator)?)
        };
        let mut sum = left;
        for (monomial, coefficient) in right {
            add_term(&mut sum, monomial, coefficient)?;
        }
        Value::quotient(sum, denominator)
    }

    pub(super) fn negated(&self) -> Value {
        Value { numerator: negate(&self.numerator), denominator: self.denominator.clone() }
    }

    pub(super) fn minus(&self, other: &Value) -> Reading<Value> {
        self.plus(&other.negated())
    }

    pub(super) fn times(&self, other: &Value) -> Reading<Value> {
        let numerator = multiply(&self.numerator, &other.numerator)?;
        Value::quotient(numerator, multiply(&self.denominator, &other.denominator)?)
    }

    pub(super) fn inverse(&self) -> Reading<Value> {
        Value::quotient(self.denominator.clone(), self.numerator.clone())
    }

    pub(super) fn over(&self, other: &Value) -> Reading<Value> {
        self.times(&other.inverse()?)
    }

    pub(super) fn power(&self, exponent: &Value) -> Reading<Value> {
        let Some(rational) = exponent.to_rational() else { return self.symbolic_power(exponent) };
        match rational.to_whole() {
            Some(whole) => self.whole_power(whole),
            None => self.root(rational.denominator)?.whole_power(rational.numerator),
        }
    }

    fn whole_power(&self, exponent: i128) -> Reading<Value> {
        if exponent == 0 && self.is_zero() {
            return Err("zero to the power of zero".into());
        }
        if exponent < 0 {
            return self.inverse()?.whole_power(-exponent);
        }
        if let Some((monomial, coefficient)) = self.single() {
            let mut raised = Monomial::new();
            let mut by = coefficient.power(exponent)?;
            for (atom, own) in monomial {
                by = by.times(raise(&mut raised, atom, own.times(Rational::whole(exponent))?)?)?;
            }
            return Ok(Value { numerator: Sum::from([(raised, by)]), denominator: one() });
        }
        if exponent > WHOLE_POWER_OF_A_SUM {
            return Err(format!("a sum to a power above {WHOLE_POWER_OF_A_SUM}"));
        }
        let mut result = Value::whole(1);
        for _ in 0..exponent {
            result = result.times(self)?;
        }
        Ok(result)
    }

    /// The real root where there is one; of negative numbers `i` times the root for degree 2.
    pub(super) fn root(&self, degree: i128) -> Reading<Value> {
        if degree < 1 {
            return Err("a root of a degree below 1".into());
        }
        if self.is_zero() || degree == 1 {
            return Ok(self.clone());
        }
        let opaque = || Value::atom(Atom::Apply(Function::Root(degree), Box::new(self.clone())));
        let Some((monomial, coefficient)) = self.single() else {
            let simple = if degree == 2 { self.denested()? } else { None };
            return Ok(simple.unwrap_or_else(opaque));
        };
        let variables = monomial.keys().filter(|atom| !matches!(atom, Atom::Prime(_) | Atom::Pi | Atom::Euler));
        let odd = |atom: &Atom| monomial[atom].to_whole().is_some_and(|exponent| exponent.abs() % 2 == 1);
        let simple = match variables.collect::<Vec<_>>()[..] {
            [] => true,
            [atom @ Atom::Variable(_)] => coefficient.numerator > 0 && odd(atom),
            _ => false,
        };
        if !simple {
            return Ok(opaque());
        }
        let mut raised = Monomial::new();
        let mut by = Rational::ONE;
        if coefficient.numerator < 0 {
            match degree {
                2 => by = by.times(raise(&mut raised, &Atom::Imaginary, Rational::ONE)?)?,
                _ if degree % 2 == 1 => by = by.negated(),
                _ => return Err(format!("a root of degree {degree} of a negative number")),
            }
        }
        for (prime, count) in factors(coefficient.numerator)? {
            by = by.times(raise(&mut raised, &Atom::Prime(prime), Rational::new(count, degree)?)?)?;
        }
        for (prime, count) in factors(coefficient.denominator)? {
            by = by.times(raise(&mut raised, &Atom::Prime(prime), Rational::new(-count, degree)?)?)?;
        }
        for (atom, exponent) in monomial {
            by = by.times(raise(&mut raised, atom, exponent.times(Rational::new(1, degree)?)?)?)?;
        }
        Ok(Value { numerator: Sum::from([(raised, by)]), denominator: one() })
    }

    /// `sqrt(a + b) = sqrt((a + d) / 2) ± sqrt((a - d) / 2)` with `d = sqrt(a² - b²)`, where `a` and `d` are rational
    /// and not negative.
    fn denested(&self) -> Reading<Option<Value>> {
        let Some(&a) = self.numerator.get(&Monomial::new()).filter(|_| self.denominator == one()) else {
            return Ok(None);
        };
        let b = self.minus(&Value::rational(a))?;
        let Some((_, by)) = b.single() else { return Ok(None) };
        let square = Value::rational(a.times(a)?).minus(&b.whole_power(2)?)?;
        let Some(d) = square.to_rational().filter(|d| d.numerator >= 0 && a.numerator > 0) else { return Ok(None) };
        let Some(d) = Value::rational(d).root(2)?.to_rational() else { return Ok(None) };
        let half = Rational::new(1, 2)?;
        let left = Value::rational(a.plus(d)?.times(half)?).root(2)?;
        let right = Value::rational(a.plus(d.negated())?.times(half)?).root(2)?;
        Ok(Some(if by.numerator > 0 { left.plus(&right)? } else { left.minus(&right)? }))
    }

    /// `b^(s + t) = b^s b^t`; the rational coefficient of a product becomes the exponent of an atom.
    fn symbolic_power(&self, exponent: &Value) -> Reading<Value> {
        if exponent.denominator != one() {
            let whole = Atom::Apply(Function::Whole, Box::new(exponent.clone()));
            return self.symbolic_power(&Value::atom(whole));
        }
        let mut bases = Vec::new();
        match self.to_rational().filter(|number| number.numerator > 0) {
            Some(number) => {
                for (prime, count) in factors(number.numerator)? {
                    bases.push((Value::whole(prime), count));
                }
                for (prime, count) in factors(number.denominator)? {
                    bases.push((Value::whole(prime), -count));
                }
            }
            None => bases.push((self.clone(), 1)),
        }
        let mut result = Value::whole(1);
        for (base, count) in bases {
            for (monomial, coefficient) in &exponent.numerator {
                let coefficient = coefficient.times(Rational::whole(count))?;
                let factor = if monomial.is_empty() {
                    base.power(&Value::rational(coefficient))?
                } else {
                    let atom = Atom::Power(Box::new(base.clone()), monomial.clone());
                    let monomial = Monomial::from([(atom, coefficient)]);
                    Value { numerator: Sum::from([(monomial, Rational::ONE)]), denominator: one() }
                };
                result = result.times(&factor)?;
            }
        }
        Ok(result)
    }
}
