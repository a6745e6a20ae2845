//! A table of pairs of answers, by category; and inputs made to hang or to panic a reader.

use salsa_algo::rules::mathematics::{AnswerPlace, Side, Verdict, compare, find_answer, grade};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const TABLE: &str = include_str!("golden/mathematics.tsv");

fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Equal => "equal",
        Verdict::Different => "different",
        Verdict::Unreadable(_) => "refused",
    }
}

#[test]
fn the_table() {
    let mut wrong = Vec::new();
    let mut rows = BTreeSet::new();
    let mut categories = BTreeSet::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let [category, expected, reference, answer] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("four columns: {line}")
        };
        assert!(["equal", "different", "refused"].contains(&expected), "{line}");
        assert!(rows.insert((reference, answer)), "twice: {line}");
        categories.insert(category);
        // Equality has no direction; neither has any verdict.
        for verdict in [compare(reference, answer), compare(answer, reference)] {
            if name(&verdict) != expected {
                wrong.push(format!("{line}: {verdict:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(rows.len() >= 300 && categories.len() >= 20, "{} rows, {} categories", rows.len(), categories.len());
}

#[test]
fn the_side_that_is_refused_is_named() {
    let side = |verdict| match verdict {
        Verdict::Unreadable(refusal) => refusal.side,
        other => panic!("{other:?}"),
    };
    assert_eq!(side(compare(r"\foo", "1")), Side::Reference);
    assert_eq!(side(compare("1", r"\foo")), Side::Answer);
    assert_eq!(side(compare("n!", "(n+1)!")), Side::Both);
    assert_eq!(side(compare("1", "")), Side::Answer);
}

#[test]
fn places() {
    use AnswerPlace::{Any, Boxed, Hashes, Last};
    for (text, place, expected) in [
        (r"\boxed{1} and \boxed{2}", Boxed, Some("2")),
        (r"\boxed{\frac{1}{2}}", Boxed, Some(r"\frac{1}{2}")),
        (r"\boxed{\{1,2\}}", Boxed, Some(r"\{1,2\}")),
        (r"\boxed{[0, \}}", Boxed, Some(r"[0, \}")),
        (r"\boxed{[0, \}", Boxed, None),
        (r"\fbox{7}", Boxed, Some("7")),
        (r"\boxed 7$", Boxed, Some("7")),
        (r"\boxed{1} but \boxed{2", Boxed, None),
        (r"\boxed{\boxed{3}}", Boxed, Some("3")),
        ("no box: 7", Boxed, None),
        ("1\n#### 2\n#### 3\nmore", Hashes, Some("3")),
        ("####", Hashes, None),
        ("costs $1,234.50.", Last, Some("1,234.50")),
        ("it is -3", Last, Some("-3")),
        ("it is −3", Last, Some("−3")),
        ("5-3", Last, Some("3")),
        ("x is 3/4!", Last, Some("3/4")),
        ("none", Last, None),
        ("x = .5", Last, Some(".5")),
        (r"\boxed{1} #### 2, 3", Any, Some("1")),
        ("#### 2\n3", Any, Some("2")),
        ("is 3", Any, Some("3")),
    ] {
        assert_eq!(find_answer(text, place), expected, "{text} {place:?}");
    }
    assert_eq!(grade("She has 4.\n#### 1,000", r"\boxed{1000}", Boxed), Verdict::Equal);
    assert_eq!(grade(r"so \boxed{\frac12}", "#### 0.5", Any), Verdict::Equal);
}

/// Every input passes all comparisons within seconds, most within a millisecond; none panics.
#[test]
fn hostile_inputs() {
    let repeated = |piece: &str, n: usize| piece.repeat(n);
    let mut inputs = vec![
        "9^{9^{9}}".to_string(),
        "9^{9^{9^{9^{9}}}}".into(),
        "2^{-170141183460469231731687303715884105727}".into(),
        "x^{170141183460469231731687303715884105727}x".into(),
        "1e999999999999999999999999999999999999999999".into(),
        "1e-99999999".into(),
        "170141183460469231731687303715884105727!".into(),
        "170141183460469231731687303715884105727+1".into(),
        "-170141183460469231731687303715884105727-1".into(),
        "170141183460469231731687303715884105728".into(),
        r"\sqrt{170141183460469231731687303715884105727}".into(),
        r"\sqrt[170141183460469231731687303715884105727]{2}".into(),
        r"\sqrt[0]{2}".into(),
        r"\sqrt[-1]{2}".into(),
        r"\binom{1000}{500}".into(),
        r"\binom{-1}{170141183460469231731687303715884105727}".into(),
        r"\sin(170141183460469231731687303715884105727\pi)".into(),
        r"\lfloor -170141183460469231731687303715884105727/2 \rfloor".into(),
        "(a+b+c+d+e+f+g+h)^{64}".into(),
        "((((a+b)^9+c)^9+d)^9+f)^9".into(),
        "\\".into(),
        "\\ ".into(),
        "{".into(),
        "}{".into(),
        ")(".into(),
        "\\text{".into(),
        "\\text{\\text{\\text{x}}}".into(),
        "\\begin{pmatrix}".into(),
        "\\end{pmatrix}\\begin{pmatrix}".into(),
        "\\frac".into(),
        "\\frac1".into(),
        "\\frac{}{}".into(),
        "^2".into(),
        "x_".into(),
        "1_".into(),
        "_".into(),
        "°".into(),
        "°C".into(),
        "%".into(),
        "!".into(),
        ".".into(),
        "...".into(),
        ",,,".into(),
        "|".into(),
        "|||".into(),
        "=".into(),
        "==".into(),
        "<>".into(),
        ":".into(),
        "a:".into(),
        "\u{0}".into(),
        "\u{202e}5".into(),
        "𝟓".into(),
        "٥".into(),
        "五".into(),
        "0.\\overline{}".into(),
        "0.\\overline{999999999999999999}".into(),
        "0^{-1}".into(),
        "0^0".into(),
        "\\pm".into(),
        "\\pm\\pm\\pm 1".into(),
        "ln0".into(),
        "\\log_1 2".into(),
        "éa".into(),
        "ℝé".into(),
        "nλ".into(),
        "sinλ".into(),
    ];
    for piece in [
        "(",
        "{",
        "[",
        "-",
        "1+",
        "\\sqrt{",
        "\\frac{",
        "\\frac1",
        "^",
        "2^",
        "x^{",
        "\\{",
        "|",
        "sin",
        "\\sin ",
        "\\text{",
        "1,",
        "a=",
        "\\cup",
        "\\pm1",
        "!",
        "5!",
        "%",
        "1/",
        "x",
        "(x+1)",
        "\\sqrt{99999999999999999}+",
        "(1,",
        "{{1},",
        "\\sin(1)+",
        "and ",
        "°",
        "1:",
        "\\left(",
        "\\begin{pmatrix}",
        "1&",
        "(a+b+c+d)(e+f+g+h)",
        "√",
        "\\ln ",
        "2^{x}+",
        "\\sqrt{x+",
        "e^{",
        "\\sqrt{1+\\sin ",
    ] {
        for n in [3, 40, 60, 400, 4000] {
            inputs.push(repeated(piece, n));
            inputs.push(format!("{}1", repeated(piece, n)));
            inputs.push(format!("{}1{}", repeated(piece, n), repeated("}", n)));
            inputs.push(format!("{}1{}", repeated(piece, n), repeated(")", n)));
        }
    }
    inputs.push(repeated("\\boxed{", 1 << 20));
    inputs.push(repeated("7", 4 << 20));
    inputs.push(repeated("{", 4 << 20));
    for input in &inputs {
        let start = Instant::now();
        for reference in ["1", "x^2+1", "\\sin 1", "(1,2)", "yes", "A"] {
            let _ = compare(reference, input);
            let _ = compare(input, reference);
        }
        let _ = compare(input, &format!("{input} "));
        for place in [AnswerPlace::Boxed, AnswerPlace::Hashes, AnswerPlace::Last, AnswerPlace::Any] {
            let _ = grade("1", input, place);
        }
        let taken = start.elapsed();
        let head: String = input.chars().take(30).collect();
        assert!(taken < Duration::from_secs(3), "{head} ({} bytes): {taken:?}", input.len());
    }
}

/// Pieces of answers in pseudo-random order: whatever the verdict, none panics, and each input equals itself.
#[test]
fn shuffled_pieces() {
    const PIECES: [&str; 48] = [
        "1",
        "2.5",
        "x",
        "y",
        "+",
        "-",
        "*",
        "/",
        "^",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "\\{",
        "\\}",
        ",",
        "=",
        "<",
        "\\le ",
        "\\frac",
        "\\sqrt",
        "\\pi",
        "\\infty",
        "\\cup",
        "\\pm",
        "°",
        "%",
        "!",
        "|",
        "\\sin",
        "\\ln",
        "\\text{ cm}",
        " and ",
        "yes",
        ":",
        "_",
        "\\binom",
        "0",
        "e",
        "i",
        "\\in",
        "\\setminus",
        "\\\\",
        "&",
        "\\begin{pmatrix}",
        "\\end{pmatrix}",
    ];
    for case in 0..20_000 {
        let draw = |k| (salsa_algo::random::uniform(1, case, k) * 48.0) as usize;
        let length = 1 + (case % 12);
        let text: String = (0..length).map(|k| PIECES[draw(k)]).collect();
        let other: String = (0..length).map(|k| PIECES[draw(k + 100)]).collect();
        assert_eq!(compare(&text, &text), Verdict::Equal, "{text}");
        let (there, back) = (compare(&text, &other), compare(&other, &text));
        assert_eq!(name(&there), name(&back), "{text} | {other}");
    }
}
