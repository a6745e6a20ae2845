//! From LaTeX or plain text to tokens.

use super::rational::{Rational, Reading};
use super::words::{FUNCTIONS, LETTERS, is_unit, unicode};

/// A piece of an answer. Brackets of sets are `⦃` and `⦄`, of matrices `⟦` and `⟧`, the end of a row is `⏎`.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A number and its digits as written.
    Number(Rational, String),
    /// A variable with its index.
    Letter(String),
    /// A function or a construct: `sin`, `frac`.
    Command(String),
    Symbol(char),
    /// The content of `\text{...}`, or a word; in lower case.
    Word(String),
    /// The content of `\text{...}` that is the whole answer may be mathematics after all.
    Text(String),
}

impl Token {
    pub(super) fn is(&self, symbol: char) -> bool {
        *self == Token::Symbol(symbol)
    }

    /// What it says, if it is a word.
    pub(super) fn word(&self) -> Option<String> {
        match self {
            Token::Word(word) => Some(word.clone()),
            Token::Text(text) => Some(text.trim().to_lowercase()),
            _ => None,
        }
    }
}

/// The longest answer that is read, in bytes, and the most tokens.
pub(super) const LONGEST: usize = 4096;

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Token>,
    /// Open brackets, in which a comma separates.
    depth: usize,
}

/// Splits an answer into tokens.
pub(super) fn tokens(answer: &str) -> Reading<Vec<Token>> {
    if answer.len() > LONGEST {
        return Err(format!("more than {LONGEST} bytes"));
    }
    let plain: String = answer.chars().map(unicode).collect();
    let mut lexer = Lexer { rest: &plain, tokens: Vec::new(), depth: 0 };
    while let Some(first) = lexer.rest.chars().next() {
        lexer.next(first)?;
    }
    Ok(lexer.tokens)
}

/// The content of a group at the start, and what follows it.
fn group(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let inner = text.strip_prefix('{')?;
    let mut depth = 1;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some((&inner[..at], &inner[at + 1..]));
        }
    }
    None
}

fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

impl<'a> Lexer<'a> {
    fn next(&mut self, first: char) -> Reading<()> {
        let after = &self.rest[first.len_utf8()..];
        let point = first == '.' && digits(after) > 0;
        if first.is_ascii_digit() || point {
            return self.number();
        }
        if first == '\\' {
            return self.command(after);
        }
        for half in ["a.m.", "p.m.", "a.m", "p.m"] {
            if let Some(rest) = self.rest.strip_prefix(half) {
                self.rest = rest;
                self.tokens.push(Token::Word(format!("{}m", &half[..1])));
                return Ok(());
            }
        }
        if first == 'π' {
            self.rest = after;
            self.tokens.push(Token::Command("pi".into()));
            return Ok(());
        }
        if first.is_alphabetic() {
            self.word();
            return Ok(());
        }
        self.rest = after;
        match first {
            '$' => {}
            '*' if after.starts_with('*') => {
                self.rest = &after[1..];
                self.symbol('^');
            }
            '<' | '>' if after.starts_with('=') => {
                self.rest = &after[1..];
                self.symbol(if first == '<' { '≤' } else { '≥' });
            }
            '!' if after.starts_with('=') => {
                self.rest = &after[1..];
                self.symbol('≠');
            }
            '=' if after.starts_with('=') => {}
            '²' | '³' => {
                let digit = if first == '²' { 2 } else { 3 };
                self.symbol('^');
                self.tokens.push(Token::Number(Rational::whole(digit), digit.to_string()));
            }
            _ if first.is_whitespace() => {}
            _ => self.symbol(first),
        }
        Ok(())
    }

    fn symbol(&mut self, symbol: char) {
        match symbol {
            '(' | '[' | '⦃' | '{' => self.depth += 1,
            ')' | ']' | '⦄' | '}' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.tokens.push(Token::Symbol(symbol));
    }

    /// The three digits after a separator of thousands at the start of the rest, and where they end.
    fn thousands(&self, first: &str) -> Option<(&'a str, usize)> {
        if first.len() > 3 || first.is_empty() || first.starts_with('0') {
            return None;
        }
        let always = ["{,}", ",\\!", "\\,", "\\ ", "\\;"];
        let outside = [",", " "];
        let separators = always.iter().chain(outside.iter().filter(|_| self.depth == 0));
        for separator in separators {
            let Some(after) = self.rest.strip_prefix(separator) else { continue };
            if digits(after) == 3 {
                return Some((&after[..3], separator.len() + 3));
            }
        }
        None
    }

    fn number(&mut self) -> Reading<()> {
        let end = digits(self.rest);
        let mut text = self.rest[..end].to_string();
        let first = text.clone();
        self.rest = &self.rest[end..];
        while let Some((three, end)) = self.thousands(&first) {
            text.push_str(three);
            self.rest = &self.rest[end..];
        }
        let mut repeating = None;
        if let Some(after) = self.rest.strip_prefix('.') {
            let end = digits(after);
            repeating = after[end..].strip_prefix("\\overline").and_then(group);
            if end > 0 || repeating.is_some() {
                text.push('.');
                text.push_str(&after[..end]);
                self.rest = &after[end..];
            }
        }
        if let Some((period, after)) = repeating {
            self.rest = after;
            let value = repeating_decimal(&text, period)?;
            self.tokens.push(Token::Number(value, text));
            return Ok(());
        }
        if let Some(after) = self.rest.strip_prefix(['e', 'E']) {
            let unsigned = after.strip_prefix(['+', '-']).unwrap_or(after);
            let end = digits(unsigned);
            if end > 0 {
                let end = 1 + after.len() - unsigned.len() + end;
                text.push_str(&self.rest[..end].replace('+', ""));
                self.rest = &self.rest[end..];
            }
        }
        self.tokens.push(Token::Number(Rational::read(&text)?, text));
        Ok(())
    }

    /// A run of letters: a function, a unit, a word, or a product of variables.
    fn word(&mut self) {
        let end = self.rest.find(|c: char| !c.is_alphabetic() || c == 'π').unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(end);
        self.rest = after;
        let lower = word.to_lowercase();
        let name = match lower.as_str() {
            "inf" | "infinity" | "oo" => {
                self.symbol('∞');
                return;
            }
            name => name,
        };
        if word == lower && (FUNCTIONS.contains(&name) || name == "pi") {
            self.tokens.push(Token::Command(lower));
        } else if word.chars().count() == 1 {
            self.letter(word);
        } else if let Some((function, letter)) = function_of_letter(word) {
            self.tokens.push(Token::Command(function.into()));
            self.letter(letter);
        } else if is_unit(&lower) || !is_product(word) {
            self.tokens.push(Token::Word(lower));
        } else {
            let (head, last) = word.split_at(word.len() - 1);
            head.chars().for_each(|letter| self.tokens.push(Token::Letter(letter.into())));
            self.letter(last);
        }
    }

    /// A variable with its index; `C` and `F` after a degree sign are units.
    fn letter(&mut self, name: &str) {
        if matches!(name, "C" | "F") && self.tokens.last().is_some_and(|token| token.is('°')) {
            self.tokens.pop();
            if self.tokens.last().is_some_and(|token| token.is('^')) {
                self.tokens.pop();
            }
            self.tokens.push(Token::Word(format!("°{}", name.to_lowercase())));
            return;
        }
        let mut name = name.to_string();
        if let Some(after) = self.rest.strip_prefix('_') {
            let (index, rest) = group(after).unwrap_or_else(|| {
                let end = after.chars().next().map_or(0, char::len_utf8);
                after.split_at(end)
            });
            name.push('_');
            name.extend(index.chars().filter(|c| !c.is_whitespace()));
            self.rest = rest;
        }
        self.tokens.push(Token::Letter(name));
    }

    fn command(&mut self, after: &'a str) -> Reading<()> {
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        if end == 0 {
            return self.escaped(after);
        }
        let (name, rest) = after.split_at(end);
        self.rest = rest;
        match name {
            "left" | "right" => self.rest = rest.strip_prefix('.').unwrap_or(rest),
            "big" | "Big" | "bigl" | "bigr" | "Bigl" | "Bigr" | "bigg" | "Bigg" | "displaystyle" | "textstyle"
            | "limits" | "quad" | "qquad" | "boxed" | "fbox" | "space" | "thinspace" | "nolimits" | "rm" | "bf"
            | "mathstrut" => {}
            "cdot" | "times" | "ast" => self.symbol('*'),
            "div" => self.symbol('/'),
            "le" | "leq" | "leqslant" => self.symbol('≤'),
            "ge" | "geq" | "geqslant" => self.symbol('≥'),
            "lt" => self.symbol('<'),
            "gt" => self.symbol('>'),
            "ne" | "neq" => self.symbol('≠'),
            "approx" => self.symbol('='),
            "cup" => self.symbol('∪'),
            "in" => self.symbol('∈'),
            "infty" => self.symbol('∞'),
            "pm" => self.symbol('±'),
            "mp" => self.symbol('∓'),
            "circ" | "degree" => self.symbol('°'),
            "setminus" | "backslash" => self.symbol('∖'),
            "emptyset" | "varnothing" => self.symbol('∅'),
            "lvert" | "rvert" | "vert" | "mid" => self.symbol('|'),
            "lbrace" => self.symbol('⦃'),
            "rbrace" => self.symbol('⦄'),
            "lbrack" => self.symbol('['),
            "rbrack" => self.symbol(']'),
            "dfrac" | "tfrac" | "cfrac" => self.tokens.push(Token::Command("frac".into())),
            "dbinom" | "tbinom" => self.tokens.push(Token::Command("binom".into())),
            "text" | "textbf" | "textit" | "textrm" | "mbox" | "mathrm" | "mathbf" | "mathit" | "operatorname"
            | "mathbb" | "mathcal" | "hbox" | "textnormal" => self.styled(name)?,
            "begin" | "end" => self.environment(name)?,
            "imath" => self.letter("i"),
            "lfloor" | "rfloor" | "lceil" | "rceil" | "pi" => self.tokens.push(Token::Command(name.into())),
            _ if FUNCTIONS.contains(&name) => self.tokens.push(Token::Command(name.into())),
            _ if LETTERS.contains(&name) => self.letter(&format!("\\{name}")),
            _ => return Err(format!("the command \\{}", name.chars().take(20).collect::<String>())),
        }
        Ok(())
    }

    fn escaped(&mut self, after: &'a str) -> Reading<()> {
        let Some(escaped) = after.chars().next() else { return Err("a backslash at the end".into()) };
        self.rest = &after[escaped.len_utf8()..];
        match escaped {
            '{' => self.symbol('⦃'),
            '}' => self.symbol('⦄'),
            '%' => self.symbol('%'),
            '\\' => self.symbol('⏎'),
            '|' => self.symbol('|'),
            ',' | '!' | ';' | ':' | '>' | '$' | '(' | ')' | '[' | ']' | '/' => {}
            _ if escaped.is_whitespace() => {}
            _ => return Err(format!("the command \\{escaped}")),
        }
        Ok(())
    }

    /// `\text{...}` and fonts.
    fn styled(&mut self, command: &str) -> Reading<()> {
        let (content, rest) = group(self.rest).ok_or(format!("\\{command} without a group"))?;
        self.rest = rest;
        let word = content.trim();
        let math = !command.starts_with("text") && command != "mbox" && command != "hbox";
        let after_number = matches!(self.tokens.last(), Some(Token::Number(..)));
        if word.is_empty() {
            return Ok(());
        }
        if command == "mathbb" || command == "mathcal" {
            self.tokens.push(Token::Letter(format!("\\{command} {word}")));
        } else if math && FUNCTIONS.contains(&word) {
            self.tokens.push(Token::Command(word.into()));
        } else if math
            && word.chars().count() == 1
            && word.chars().all(char::is_alphabetic)
            && (matches!(word, "e" | "i") || !after_number)
        {
            // A single letter after a number is a unit: 5\,\mathrm{m}.
            self.letter(word);
        } else if word == "%" || word == "\\%" {
            self.symbol('%');
        } else if word == "," || word == ";" {
            self.symbol(',');
        } else {
            self.tokens.push(Token::Text(word.into()));
        }
        Ok(())
    }

    fn environment(&mut self, command: &str) -> Reading<()> {
        let (name, rest) = group(self.rest).ok_or(format!("\\{command} without a group"))?;
        if !matches!(name, "pmatrix" | "bmatrix" | "matrix" | "smallmatrix") {
            return Err(format!("the environment {}", name.chars().take(20).collect::<String>()));
        }
        self.rest = rest;
        self.symbol(if command == "begin" { '⟦' } else { '⟧' });
        Ok(())
    }
}

/// `0.1` and the period `6` give 1/6.
fn repeating_decimal(text: &str, period: &str) -> Reading<Rational> {
    if period.is_empty() || digits(period) != period.len() || period.len() > 18 {
        return Err("a period that is not 1 to 18 digits".into());
    }
    let places = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    let ten = Rational::whole(10);
    let nines = ten.power(period.len() as i128)?.plus(Rational::whole(-1))?;
    let scale = nines.times(ten.power(places as i128)?)?;
    Rational::read(text)?.plus(Rational::read(period)?.times(scale.inverse()?)?)
}

/// `sinx` is a function and its argument.
fn function_of_letter(word: &str) -> Option<(&str, &str)> {
    let (function, letter) = word.split_at_checked(word.len().checked_sub(1)?)?;
    (["sin", "cos", "tan", "log", "ln"].contains(&function)).then_some((function, letter))
}

/// Few letters without vowels (`xy`, `AB` has one but is usual) multiply; anything else is a word.
fn is_product(word: &str) -> bool {
    let letters = word.is_ascii() && word.len() <= 4;
    letters && (word == "ab" || word == "abc" || !word.bytes().any(|b| b"aeiouAEIOU".contains(&b)))
}
