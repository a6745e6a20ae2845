//! From tokens to a value.

use super::function::{apply, binomial, named};
use super::rational::{Rational, Reading};
use super::token::Token;
use super::value::{Atom, Function, Value};

/// How deep brackets, exponents and arguments may lie in each other.
const DEEPEST: usize = 48;

/// Which sign `±` stands for in this reading.
#[derive(Clone, Copy)]
pub(super) enum PlusMinus {
    Upper,
    Lower,
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    sign: PlusMinus,
    /// Inside the argument of a trigonometric function a degree is pi / 180, elsewhere a unit.
    angle: bool,
    /// Inside bars a bar closes.
    bars: bool,
}

/// Reads all tokens as one expression.
pub(super) fn expression(tokens: &[Token], sign: PlusMinus) -> Reading<Value> {
    let mut parser = Parser { tokens, at: 0, depth: 0, sign, angle: false, bars: false };
    let value = parser.sum()?;
    match parser.peek() {
        None => Ok(value),
        Some(token) => Err(format!("{} where an expression ends", name(token))),
    }
}

fn name(token: &Token) -> String {
    match token {
        Token::Number(_, text) => format!("the number {text}"),
        Token::Letter(name) => format!("the letter {name}"),
        Token::Command(name) => format!("the command {name}"),
        Token::Symbol(symbol) => format!("the sign {symbol:?}"),
        Token::Word(word) | Token::Text(word) => {
            format!("the word {:?}", word.chars().take(20).collect::<String>())
        }
    }
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn take(&mut self, symbol: char) -> bool {
        let found = self.peek().is_some_and(|token| token.is(symbol));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, symbol: char) -> Reading<()> {
        if self.take(symbol) { Ok(()) } else { Err(format!("a missing {symbol:?}")) }
    }

    fn deeper(&mut self) -> Reading<()> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(format!("more than {DEEPEST} levels")) } else { Ok(()) }
    }

    fn sum(&mut self) -> Reading<Value> {
        self.deeper()?;
        let negative = self.sign().unwrap_or(false);
        let term = self.term()?;
        let mut sum = if negative { term.negated() } else { term };
        while let Some(negative) = self.sign() {
            let term = self.term()?;
            sum = if negative { sum.minus(&term)? } else { sum.plus(&term)? };
        }
        self.depth -= 1;
        Ok(sum)
    }

    /// Takes a sign; whether it is minus.
    fn sign(&mut self) -> Option<bool> {
        let negative = match self.peek() {
            Some(Token::Symbol('+')) => false,
            Some(Token::Symbol('-')) => true,
            Some(Token::Symbol('±')) => matches!(self.sign, PlusMinus::Lower),
            Some(Token::Symbol('∓')) => matches!(self.sign, PlusMinus::Upper),
            _ => return None,
        };
        self.at += 1;
        Some(negative)
    }

    fn term(&mut self) -> Reading<Value> {
        let mut product = self.factor()?;
        loop {
            if self.take('*') {
                product = product.times(&self.factor()?)?;
            } else if self.take('/') {
                product = product.over(&self.factor()?)?;
            } else if self.starts_factor() {
                product = product.times(&self.power()?)?;
            } else {
                return Ok(product);
            }
        }
    }

    /// Whether a factor may follow without a sign: never a number after a number.
    fn starts_factor(&self) -> bool {
        match self.peek() {
            Some(Token::Letter(_)) => true,
            Some(Token::Command(name)) => name != "rfloor" && name != "rceil",
            Some(Token::Symbol('(' | '[' | '{' | '∞')) => true,
            Some(Token::Symbol('|')) => !self.bars,
            Some(Token::Number(..)) => !matches!(self.tokens.get(self.at.wrapping_sub(1)), Some(Token::Number(..))),
            _ => false,
        }
    }

    fn factor(&mut self) -> Reading<Value> {
        match self.sign() {
            Some(negative) => {
                self.deeper()?;
                let factor = self.factor()?;
                self.depth -= 1;
                Ok(if negative { factor.negated() } else { factor })
            }
            None => self.power(),
        }
    }

    fn power(&mut self) -> Reading<Value> {
        let mut base = match self.peek() {
            Some(Token::Number(number, _)) => {
                self.at += 1;
                self.mixed(*number)?
            }
            _ => self.primary()?,
        };
        loop {
            if self.take('!') {
                base = apply(Function::Factorial, base)?;
            } else if self.take('°') {
                base = self.degrees(base)?;
            } else if self.take('%') {
                base = base.over(&Value::whole(100))?;
            } else if self.take('^') {
                if self.degree_follows() {
                    base = self.degrees(base)?;
                    continue;
                }
                let exponent = self.exponent()?;
                base = base.power(&exponent)?;
            } else {
                return Ok(base);
            }
        }
    }

    fn degrees(&self, base: Value) -> Reading<Value> {
        if !self.angle {
            return Ok(base);
        }
        base.times(&Value::atom(Atom::Pi))?.over(&Value::whole(180))
    }

    /// `^\circ` or `^{\circ}`.
    fn degree_follows(&mut self) -> bool {
        let rest = &self.tokens[self.at..];
        let length = match rest {
            [Token::Symbol('°'), ..] => 1,
            [Token::Symbol('{'), Token::Symbol('°'), Token::Symbol('}'), ..] => 3,
            _ => return false,
        };
        self.at += length;
        true
    }

    fn exponent(&mut self) -> Reading<Value> {
        self.deeper()?;
        let exponent = match self.sign() {
            Some(true) => self.exponent()?.negated(),
            Some(false) => self.exponent()?,
            None => {
                let base = self.primary()?;
                // a^b^c is a^(b^c)
                if self.take('^') { base.power(&self.exponent()?)? } else { base }
            }
        };
        self.depth -= 1;
        Ok(exponent)
    }

    /// An argument of a command: a group, or one digit or letter, as in `\frac12`.
    fn argument(&mut self, digits: &mut std::collections::VecDeque<char>) -> Reading<Value> {
        if let Some(digit) = digits.pop_front() {
            return Ok(Value::whole(i128::from(digit.to_digit(10).ok_or("a point in a fraction")?)));
        }
        match self.peek() {
            Some(Token::Number(_, text)) => {
                self.at += 1;
                digits.extend(text.chars());
                self.argument(digits)
            }
            _ => self.primary(),
        }
    }

    fn primary(&mut self) -> Reading<Value> {
        self.deeper()?;
        let token = self.peek().ok_or("an expression that ends early")?;
        self.at += 1;
        let value = match token {
            Token::Number(number, _) => Value::rational(*number),
            Token::Letter(name) => match name.as_str() {
                "e" => Value::atom(Atom::Euler),
                "i" => Value::atom(Atom::Imaginary),
                name => Value::variable(name),
            },
            Token::Symbol('∞') => Value::variable("∞"),
            Token::Symbol('√') => {
                let argument = self.primary()?;
                argument.root(2)?
            }
            Token::Symbol(open @ ('(' | '[' | '{')) => self.bracket(*open)?,
            Token::Symbol('|') => {
                let outer = std::mem::replace(&mut self.bars, true);
                let inner = self.sum()?;
                self.expect('|')?;
                self.bars = outer;
                apply(Function::Abs, inner)?
            }
            Token::Command(name) => self.command(name)?,
            token => return Err(format!("{} where a value is expected", name(token))),
        };
        self.depth -= 1;
        Ok(value)
    }

    fn bracket(&mut self, open: char) -> Reading<Value> {
        let outer = std::mem::replace(&mut self.bars, false);
        let inner = self.sum()?;
        self.bars = outer;
        self.expect(match open {
            '(' => ')',
            '[' => ']',
            _ => '}',
        })?;
        Ok(inner)
    }

    /// A whole number before a fraction of whole numbers is a mixed number: `1\frac12`, `1 1/2`.
    fn mixed(&mut self, number: Rational) -> Reading<Value> {
        let whole = Value::rational(number);
        if number.to_whole().is_none() {
            return Ok(whole);
        }
        let rest = &self.tokens[self.at..];
        let fraction = match rest {
            [Token::Number(a, _), Token::Symbol('/'), Token::Number(b, _), ..] => {
                self.at += 3;
                Value::rational(*a).over(&Value::rational(*b))?
            }
            [Token::Command(name), ..] if name == "frac" => {
                let start = self.at;
                self.at += 1;
                let fraction = self.fraction()?;
                let digits = |token: &Token| matches!(token, Token::Number(..) | Token::Symbol('{' | '}'));
                if !self.tokens[start + 1..self.at].iter().all(digits) || fraction.to_rational().is_none() {
                    self.at = start;
                    return Ok(whole);
                }
                fraction
            }
            _ => return Ok(whole),
        };
        whole.plus(&fraction)
    }

    fn fraction(&mut self) -> Reading<Value> {
        let mut digits = Default::default();
        let numerator = self.argument(&mut digits)?;
        let denominator = self.argument(&mut digits)?;
        let mut value = numerator.over(&denominator)?;
        // \frac1234 is 1/2 times 34
        if !digits.is_empty() {
            value = value.times(&Value::rational(Rational::read(&digits.into_iter().collect::<String>())?))?;
        }
        Ok(value)
    }

    fn command(&mut self, name: &str) -> Reading<Value> {
        match name {
            "pi" => Ok(Value::atom(Atom::Pi)),
            "frac" => self.fraction(),
            "binom" => {
                let mut digits = Default::default();
                let (n, k) = (self.argument(&mut digits)?, self.argument(&mut digits)?);
                binomial(&n, &k)
            }
            "sqrt" => self.square_root(),
            "lfloor" | "lceil" => {
                let inner = self.sum()?;
                let (close, function) =
                    if name == "lfloor" { ("rfloor", Function::Floor) } else { ("rceil", Function::Ceiling) };
                if self.peek() != Some(&Token::Command(close.into())) {
                    return Err(format!("a missing \\{close}"));
                }
                self.at += 1;
                apply(function, inner)
            }
            "overline" | "rfloor" | "rceil" => Err(format!("the command \\{name}")),
            _ => self.function(name),
        }
    }

    fn square_root(&mut self) -> Reading<Value> {
        let mut degree = 2;
        if self.take('[') {
            let value = self.sum()?;
            self.expect(']')?;
            degree = value.to_rational().and_then(Rational::to_whole).ok_or("a root of a degree that is no number")?;
        }
        if degree > 1000 {
            return Err("a root of a degree above 1000".into());
        }
        self.primary()?.root(degree)
    }

    /// A named function with an optional base or exponent, then its argument.
    fn function(&mut self, name: &str) -> Reading<Value> {
        let mut base = None;
        let mut exponent = None;
        if self.take('_') {
            base = Some(self.argument(&mut Default::default())?);
        }
        if self.take('^') {
            exponent = Some(self.exponent()?);
        }
        let trigonometric = ["sin", "cos", "tan", "cot", "sec", "csc"].contains(&name);
        let outer = self.angle;
        self.angle |= trigonometric;
        let argument = self.function_argument()?;
        self.angle = outer;
        if exponent == Some(Value::whole(-1)) {
            return Err(format!("the power -1 of {name}"));
        }
        let value = named(name, base, argument)?;
        match exponent {
            Some(exponent) => value.power(&exponent),
            None => Ok(value),
        }
    }

    /// Brackets, or the factors that follow without a sign: `\sin 2x`, `\ln 2`.
    fn function_argument(&mut self) -> Reading<Value> {
        if matches!(self.peek(), Some(Token::Symbol('(' | '[' | '{' | '|'))) {
            let argument = self.primary()?;
            return if self.take('°') || (self.take('^') && self.degree_follows()) {
                self.degrees(argument)
            } else {
                Ok(argument)
            };
        }
        let mut product = self.factor()?;
        while matches!(self.peek(), Some(Token::Letter(_)))
            || self.peek() == Some(&Token::Command("pi".into()))
            || matches!((self.peek(), self.tokens.get(self.at + 1)),
                (Some(Token::Symbol('/')), Some(Token::Number(..))) if self.angle)
        {
            product = if self.take('/') { product.over(&self.power()?)? } else { product.times(&self.power()?)? };
        }
        Ok(product)
    }
}
