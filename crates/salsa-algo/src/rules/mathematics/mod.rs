//! Whether a model's answer to a question of mathematics is the reference answer.
//!
//! # What is read
//!
//! LaTeX and plain text: whole numbers, decimals, repeating decimals, scientific notation, fractions, mixed numbers,
//! powers, roots, factorials, binomials, pi, e, i, logarithms, trigonometric functions, absolute values, variables;
//! tuples and intervals, sets and lists, unions, matrices, equations and inequalities; words, letters of a choice.
//!
//! # What is equal
//!
//! - Numbers are exact: 0.333 is not 1/3. Thousands separators (`1,000`, `1{,}000`, `1\,000`, `1,\!000`), currency
//!   signs, degree signs and labels (`x =`, `Answer:`) mean nothing. `50\%` is 0.5, and 50 too, since a question about
//!   percent may leave the sign to either side.
//! - Three digits after a comma outside of brackets are thousands: `100,200` is one number, `100, 200` are two.
//! - A unit may be missing on one side; two known units that differ are different answers: nothing is converted.
//!   A single letter is a unit in `\text{ m}` and a variable in `5 m`.
//! - Expressions are brought to a normal form: quotients of sums of products over rational numbers, roots, pi, e, i,
//!   logarithms and variables. Two normal forms are compared by cross-multiplication, without any rounding. Where a
//!   function has no normal form (the sine of 1, a nested root) the difference is computed in `f64` at 8 places, of
//!   both signs, and is zero if below 1e-10 of its terms. Variables are real: `\sqrt{x^2}` is `|x|`, not `x`.
//! - `2^10` is 1024, a base (`2516_8`) a unit, `\log` the natural logarithm; `1/2x` is `(1/2) x`.
//! - Order counts in tuples and intervals, not in lists and sets. `±a` is the list of both.
//! - `y = 2x + 1` is `2x + 1`, and `4x - 2y + 2 = 0`. `x < 3` is `(-\infty, 3)`.
//! - Words are compared without case and punctuation.
//!
//! # What is refused
//!
//! What cannot be read is [`Verdict::Unreadable`], with the side and the reason, unless both texts are the same: other
//! commands and environments, sets given by a condition, numbers beyond 128 bits, sums of more than 512 terms, more
//! than 4096 bytes, more than 48 levels. Time is bounded by these limits; nothing panics.
//!
//! Compare math-verify (Hugging Face), `is_equiv` of MATH (Hendrycks et al. 2021, 2103.03874) and the answers of GSM8K
//! (Cobbe et al. 2021, 2110.14168).

mod answer;
mod equality;
mod expression;
mod extract;
mod function;
mod rational;
mod token;
mod unit;
mod value;
mod words;

pub use extract::{AnswerPlace, find_answer};

/// One of the two sides of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What is held to be right.
    Reference,
    /// What the model says.
    Answer,
    /// Both can be read, but no rule compares them.
    Both,
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What cannot be read.
    pub side: Side,
    /// What in it, as a noun: "a number beyond 128 bits".
    pub reason: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let side = match self.side {
            Side::Reference => "reference",
            Side::Answer => "answer",
            Side::Both => "comparison",
        };
        write!(f, "{side}: {}", self.reason)
    }
}

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Both are the same.
    Equal,
    /// Both can be read and are not the same.
    Different,
    /// There is something that cannot be read.
    Unreadable(Refusal),
}

fn refusal(side: Side) -> impl FnOnce(String) -> Refusal {
    move |reason| Refusal { side, reason }
}

/// Compares two bare answers (no text around them): see the [module](self) for what is equal.
///
/// ```
/// use salsa_algo::rules::mathematics::{Side, Verdict, compare};
/// assert_eq!(compare(r"\frac{1}{2}", "0.5"), Verdict::Equal);
/// assert_eq!(compare(r"\sqrt{8}", r"2\sqrt2"), Verdict::Equal);
/// assert_eq!(compare("(x+1)^2", "x^2+1"), Verdict::Different);
/// assert_eq!(compare("[0, 1)", "[0, 1]"), Verdict::Different);
/// let Verdict::Unreadable(refusal) = compare("1", "9^{9^{9}}") else { panic!() };
/// assert_eq!((refusal.side, refusal.reason.as_str()), (Side::Answer, "a number beyond 128 bits"));
/// ```
pub fn compare(reference: &str, answer: &str) -> Verdict {
    match decide(reference.trim(), answer.trim()) {
        Ok(true) => Verdict::Equal,
        Ok(false) => Verdict::Different,
        Err(refusal) => Verdict::Unreadable(refusal),
    }
}

fn decide(reference: &str, answer: &str) -> Result<bool, Refusal> {
    for (text, side) in [(reference, Side::Reference), (answer, Side::Answer)] {
        if text.is_empty() {
            return Err(Refusal { side, reason: "nothing".into() });
        }
    }
    let characters = |text: &'_ str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    if reference == answer
        || (reference.len().max(answer.len()) <= token::LONGEST && characters(reference) == characters(answer))
    {
        return Ok(true);
    }
    for (bare, other) in [(reference, answer), (answer, reference)] {
        if let Some(letter) = choice(bare)
            && let Some(chosen) = choice_with_text(other)
        {
            return Ok(letter == chosen);
        }
    }
    let expected = answer::read(reference).map_err(refusal(Side::Reference))?;
    let found = answer::read(answer).map_err(refusal(Side::Answer))?;
    equality::equal(&expected, &found).map_err(refusal(Side::Both))
}

/// The letter of a choice: `A`, `(A)`, `\text{(A)}`, `\textbf{A}`.
fn choice(text: &str) -> Option<char> {
    let mut text = text.trim();
    for command in ["\\text{", "\\textbf{", "\\mathrm{", "\\mathbf{"] {
        text = text.strip_prefix(command).and_then(|inner| inner.strip_suffix('}')).unwrap_or(text).trim();
    }
    let text = text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).unwrap_or(text);
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut characters = text.chars();
    characters.next().filter(|c| ('A'..='J').contains(c) && characters.next().is_none())
}

/// The letter in front of the text of a choice: `(B) 5`, `\text{(B)} 5`, `B. five`, `B) 5`.
fn choice_with_text(text: &str) -> Option<char> {
    let text = text.trim_start_matches("\\textbf{").trim_start_matches("\\text{").trim_start();
    let bare = text.strip_prefix('(').unwrap_or(text);
    let mut characters = bare.chars();
    let letter = characters.next().filter(|c| ('A'..='J').contains(c))?;
    let rest = characters.as_str();
    let after =
        rest.strip_prefix(')').or_else(|| rest.strip_prefix(['.', ':']).filter(|_| bare.len() == text.len()))?;
    (!after.starts_with(|c: char| c.is_ascii_digit())).then_some(letter)
}

/// Checks that a reference can be compared with answers: what is behind `####` or in a box, or else all of it.
///
/// ```
/// use salsa_algo::rules::mathematics::check_reference;
/// assert!(check_reference("Half of 24 is 12.\n#### 12").is_ok());
/// assert_eq!(check_reference("9^{9^{9}}").unwrap_err().to_string(), "reference: a number beyond 128 bits");
/// ```
///
/// # Errors
/// What in it cannot be read.
pub fn check_reference(reference: &str) -> Result<(), Refusal> {
    let stated = extract::stated(reference).unwrap_or(reference).trim();
    answer::read(stated).map(drop).map_err(refusal(Side::Reference))
}

/// Compares the final answer of a response with a reference: a bare answer, a solution of GSM8K that ends with
/// `#### 12`, or a text with a `\boxed{...}`. A response without an answer at this place is unreadable.
///
/// ```
/// use salsa_algo::rules::mathematics::{AnswerPlace, Verdict, grade};
/// let reference = "Half of 24 is 12.\n#### 12";
/// assert_eq!(grade(reference, r"It is \boxed{12}.", AnswerPlace::Boxed), Verdict::Equal);
/// assert_eq!(grade(reference, "It is 13.", AnswerPlace::Any), Verdict::Different);
/// assert!(matches!(grade(reference, "It is 12.", AnswerPlace::Boxed), Verdict::Unreadable(_)));
/// ```
pub fn grade(reference: &str, response: &str, place: AnswerPlace) -> Verdict {
    match find_answer(response, place) {
        Some(answer) => compare(extract::stated(reference).unwrap_or(reference), answer),
        None => {
            let reason = match place {
                AnswerPlace::Boxed => "no closed \\boxed{...}",
                AnswerPlace::Hashes => "no line with ####",
                AnswerPlace::Last | AnswerPlace::Any => "no answer and no number",
            };
            Verdict::Unreadable(Refusal { side: Side::Answer, reason: reason.into() })
        }
    }
}
