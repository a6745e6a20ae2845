//! Functions with exact values where they have them, and approximate values of what has none.

use super::rational::{Rational, Reading, factors};
use super::value::{Atom, Function, Monomial, Sum, Value};

/// The largest `n` whose factorial fits into 128 bits.
const LARGEST_FACTORIAL: i128 = 33;

/// `sin(k pi / 12)`.
fn sine_of_twelfths(twelfths: i128) -> Reading<Value> {
    let k = twelfths.rem_euclid(24);
    let (k, negative) = if k > 12 { (k - 12, true) } else { (k, false) };
    let root = |number: i128| Value::whole(number).root(2);
    let quarter = |value: Value| value.over(&Value::whole(4));
    let value = match k.min(12 - k) {
        0 => Value::whole(0),
        1 => quarter(root(6)?.minus(&root(2)?)?)?,
        2 => Value::rational(Rational::new(1, 2)?),
        3 => root(2)?.over(&Value::whole(2))?,
        4 => root(3)?.over(&Value::whole(2))?,
        5 => quarter(root(6)?.plus(&root(2)?)?)?,
        _ => Value::whole(1),
    };
    Ok(if negative { value.negated() } else { value })
}

/// The number of twelfths of pi, if the angle is a whole one.
fn twelfths(angle: &Value) -> Reading<Option<i128>> {
    let ratio = angle.times(&Value::whole(12))?.over(&Value::atom(Atom::Pi))?;
    Ok(ratio.to_rational().and_then(Rational::to_whole))
}

fn logarithm(argument: &Value) -> Reading<Option<Value>> {
    if *argument == Value::atom(Atom::Euler) {
        return Ok(Some(Value::whole(1)));
    }
    let Some(number) = argument.to_rational() else { return Ok(None) };
    if number.numerator <= 0 {
        return Err("a logarithm of a number that is not positive".into());
    }
    let mut sum = Value::whole(0);
    for (of, sign) in [(number.numerator, 1), (number.denominator, -1)] {
        for (prime, count) in factors(of)? {
            let atom = Value::atom(Atom::Apply(Function::Ln, Box::new(Value::whole(prime))));
            sum = sum.plus(&atom.times(&Value::whole(sign * count))?)?;
        }
    }
    Ok(Some(sum))
}

fn factorial(number: i128) -> Reading<Value> {
    if !(0..=LARGEST_FACTORIAL).contains(&number) {
        return Err(format!("a factorial of a number outside of 0 to {LARGEST_FACTORIAL}"));
    }
    Ok(Value::whole((1..=number).product()))
}

/// Applies a function: exactly where there is a simpler form, else as an atom.
pub(super) fn apply(function: Function, argument: Value) -> Reading<Value> {
    let rational = argument.to_rational();
    let simple = match function {
        Function::Sin => twelfths(&argument)?.map(sine_of_twelfths).transpose()?,
        Function::Cos => twelfths(&argument)?.map(|k| sine_of_twelfths(k.saturating_add(6))).transpose()?,
        Function::Ln => logarithm(&argument)?,
        Function::Abs => {
            rational.map(|number| Value::rational(if number.numerator < 0 { number.negated() } else { number }))
        }
        Function::Floor => rational.map(|number| Value::whole(number.numerator.div_euclid(number.denominator))),
        Function::Ceiling => rational.map(|number| Value::whole(-(-number.numerator).div_euclid(number.denominator))),
        Function::Factorial => match rational {
            Some(number) => Some(factorial(number.to_whole().ok_or("a factorial of a fraction")?)?),
            None => None,
        },
        Function::Arcsin | Function::Arccos | Function::Arctan => inverse_sine(function, &argument)?,
        Function::Root(_) | Function::Whole => None,
    };
    Ok(simple.unwrap_or_else(|| Value::atom(Atom::Apply(function, Box::new(argument)))))
}

/// Applies the function of this name, with the base of a logarithm.
pub(super) fn named(name: &str, base: Option<Value>, argument: Value) -> Reading<Value> {
    let one = Value::whole(1);
    match name {
        "sin" => apply(Function::Sin, argument),
        "cos" => apply(Function::Cos, argument),
        "tan" => apply(Function::Sin, argument.clone())?.over(&apply(Function::Cos, argument)?),
        "cot" => apply(Function::Cos, argument.clone())?.over(&apply(Function::Sin, argument)?),
        "sec" => one.over(&apply(Function::Cos, argument)?),
        "csc" => one.over(&apply(Function::Sin, argument)?),
        "arcsin" | "asin" => apply(Function::Arcsin, argument),
        "arccos" | "acos" => apply(Function::Arccos, argument),
        "arctan" | "atan" => apply(Function::Arctan, argument),
        "exp" => Value::atom(Atom::Euler).power(&argument),
        "abs" => apply(Function::Abs, argument),
        "floor" => apply(Function::Floor, argument),
        "ceil" => apply(Function::Ceiling, argument),
        "ln" => apply(Function::Ln, argument),
        "lg" => apply(Function::Ln, argument)?.over(&apply(Function::Ln, Value::whole(10))?),
        // Without a base the logarithm is the natural one, as in the public verifiers.
        "log" => match base {
            Some(base) => apply(Function::Ln, argument)?.over(&apply(Function::Ln, base)?),
            None => apply(Function::Ln, argument),
        },
        _ => Err(format!("the function {name}")),
    }
}

pub(super) fn binomial(n: &Value, k: &Value) -> Reading<Value> {
    let whole = |value: &Value| value.to_rational().and_then(Rational::to_whole);
    let (Some(n), Some(k)) = (whole(n), whole(k)) else { return Err("a binomial of what is no number".into()) };
    if !(0..=1000).contains(&n) || k < 0 {
        return Err("a binomial of a number outside of 0 to 1000".into());
    }
    let mut result = Rational::ONE;
    for j in 0..k.min(n.saturating_sub(k)).max(0) {
        result = result.times(Rational::new(n - j, j + 1)?)?;
    }
    Ok(if k > n { Value::whole(0) } else { Value::rational(result) })
}

/// Inverse trigonometric functions at the sines, cosines and tangents of whole twelfths of pi.
fn inverse_sine(function: Function, argument: &Value) -> Reading<Option<Value>> {
    let range = match function {
        Function::Arccos => 0..=12,
        Function::Arctan => -5..=5,
        _ => -6..=6,
    };
    for k in range {
        let (sine, cosine) = (sine_of_twelfths(k)?, sine_of_twelfths(k + 6)?);
        let value = match function {
            Function::Arccos => cosine,
            Function::Arctan => sine.over(&cosine)?,
            _ => sine,
        };
        if difference(&value, argument)?.is_empty() {
            return Ok(Some(Value::atom(Atom::Pi).times(&Value::rational(Rational::new(k, 12)?))?));
        }
    }
    Ok(None)
}

/// The numerator of the difference: empty exactly if both are the same normal form.
pub(super) fn difference(left: &Value, right: &Value) -> Reading<Sum> {
    Ok(left.minus(right)?.numerator)
}

/// Whether a sum has an atom without a normal form of its own: only then may two forms of one value differ.
pub(super) fn is_opaque(value: &Value) -> bool {
    let atoms = value.numerator.keys().chain(value.denominator.keys()).flat_map(Monomial::keys);
    let mut opaque = false;
    for atom in atoms {
        opaque |= match atom {
            Atom::Apply(Function::Ln, argument) => argument.to_rational().is_none(),
            Atom::Apply(..) | Atom::Power(..) => true,
            _ => false,
        };
    }
    opaque
}

/// A sum with each variable replaced by `at(name)`, and the sum of its absolute terms. NaN where it is not real.
pub(super) fn approximate(sum: &Sum, at: &dyn Fn(&str) -> f64) -> (f64, f64) {
    let (mut all, mut size) = (0.0, 0.0);
    for (monomial, coefficient) in sum {
        let term = coefficient.approximate() * product(monomial, at);
        all += term;
        size += term.abs();
    }
    (all, size)
}

fn quotient(value: &Value, at: &dyn Fn(&str) -> f64) -> f64 {
    approximate(&value.numerator, at).0 / approximate(&value.denominator, at).0
}

fn product(monomial: &Monomial, at: &dyn Fn(&str) -> f64) -> f64 {
    monomial.iter().map(|(atom, exponent)| atom_at(atom, at).powf(exponent.approximate())).product()
}

fn atom_at(atom: &Atom, at: &dyn Fn(&str) -> f64) -> f64 {
    match atom {
        Atom::Prime(prime) => *prime as f64,
        Atom::Imaginary => f64::NAN,
        Atom::Pi => std::f64::consts::PI,
        Atom::Euler => std::f64::consts::E,
        Atom::Variable(name) => at(name),
        Atom::Power(base, exponent) => quotient(base, at).powf(product(exponent, at)),
        Atom::Apply(function, argument) => {
            let x = quotient(argument, at);
            match function {
                Function::Sin => x.sin(),
                Function::Cos => x.cos(),
                Function::Arcsin => x.asin(),
                Function::Arccos => x.acos(),
                Function::Arctan => x.atan(),
                Function::Ln => x.ln(),
                Function::Abs => x.abs(),
                Function::Floor => x.floor(),
                Function::Ceiling => x.ceil(),
                Function::Factorial => f64::NAN,
                Function::Root(degree) if x < 0.0 && degree % 2 == 1 => -(-x).powf(1.0 / *degree as f64),
                Function::Root(degree) => x.powf(1.0 / *degree as f64),
                Function::Whole => x,
            }
        }
    }
}
