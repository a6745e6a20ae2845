//! Scores compared with numbers computed by hand.
use super::*;

fn counting<'a>(protocol: Protocol, baseline: &'a str) -> Counting<'a> {
    Counting {
        protocol,
        baseline,
        how: Resampling { resamples: 200, ..Resampling::default() },
        style: StyleControl::None,
        controlled: [true; FEATURES],
        scale: None,
        style_of: &|_, _| None,
        length_of: &|model, _| Some(model.len() * 10),
        category_of: &|_| None,
        difficulties: None,
        gamed: None,
    }
}

fn pair_row(question: u64, models: [&str; 2], winners: [&str; 2]) -> PairRow {
    PairRow {
        question_id: json!(question),
        model_1: models[0].to_owned(),
        model_2: models[1].to_owned(),
        g1_winner: winners[0].to_owned(),
        g2_winner: winners[1].to_owned(),
        judge: ("j".to_owned(), "pair-v2".to_owned()),
        g1_user_prompt: String::new(),
        g1_judgment: String::new(),
        g2_user_prompt: String::new(),
        g2_judgment: String::new(),
        turn: 1,
    }
}

#[test]
fn both_sides_of_a_pair_are_counted_and_the_baseline_is_not_shown() {
    let rows = vec![
        pair_row(1, ["a", "b"], ["model_1", "model_1"]),
        pair_row(2, ["a", "b"], ["model_1", "model_2"]),
        pair_row(3, ["a", "b"], ["tie", "error"]),
        pair_row(3, ["a", "b"], ["model_2", "model_2"]),
    ];
    let mut rows = Rows::Pair(rows);
    assert_eq!(rows.remove_duplicates(), 1, "the second judgment of question 3");
    let found = rows.scores(&counting(Protocol::MtBenchPair, "")).unwrap();
    assert_eq!(found["models"]["a"]["win_rate_adjusted"], 0.75);
    assert_eq!(found["models"]["b"]["win_rate_adjusted"], 0.25);
    assert_eq!((&found["models"]["a"]["dropped"], &found["models"]["a"]["ties"]), (&json!(1), &json!(1)));
    assert_eq!(found["position_bias"]["first_shown_won_both"], 1);
    let found = rows.scores(&counting(Protocol::MtBenchPair, "b")).unwrap();
    assert_eq!(found["models"].as_object().unwrap().keys().collect::<Vec<_>>(), ["a"]);
    assert!(found["rule"].as_str().unwrap().contains("both orders agree"));
}

fn arena_row(uid: &str, labels: [Option<&str>; 2]) -> ArenaRow {
    let game = |label: Option<&str>| {
        Some(crate::stage::eval::judge::protocol::arena::ArenaGame {
            score: label.map(str::to_owned),
            judgment: json!(""),
            user_prompt: None,
            prompt: None,
        })
    };
    ArenaRow {
        uid: json!(uid),
        category: String::new(),
        model: "m".to_owned(),
        judge: "j".to_owned(),
        baseline: "base".to_owned(),
        games: labels.map(game).into(),
    }
}

#[test]
fn the_two_versions_of_arena_hard_differ_in_half_judged_rows() {
    let rows = Rows::Arena(vec![
        arena_row("1", [Some("A>>B"), Some("A>B")]), // 0 three times, 1 once
        arena_row("2", [Some("B>A"), None]),         // 1 once, or nothing
    ]);
    let score = |protocol| {
        let found = rows.scores(&counting(protocol, "base")).unwrap();
        found["categories"]["arena-hard-v0.1"]["models"]["m"]["score"].as_f64().unwrap()
    };
    assert_eq!(score(Protocol::ArenaHardV01), 40.0);
    assert_eq!(score(Protocol::ArenaHardV2), 25.0);
}

#[test]
fn style_needs_answers_and_moves_scores() {
    let label = |i: usize| if i.is_multiple_of(3) { "A>B" } else { "B>A" };
    let other = |i: usize| if i.is_multiple_of(4) { "B>A" } else { "A>B" };
    let rows: Vec<ArenaRow> = (0..60).map(|i| arena_row(&i.to_string(), [Some(label(i)), Some(other(i))])).collect();
    let rows = Rows::Arena(rows);
    let style = StyleControl::Exact;
    let refused = Counting { style, ..counting(Protocol::ArenaHardV2, "base") };
    let error = format!("{:#}", rows.scores(&refused).unwrap_err());
    assert!(error.contains("style_control needs the answers of m"), "{error}");
    let style_of = |model: &str, key: &str| {
        let tokens = if model == "m" { 300.0 + key.len() as f64 } else { 200.0 };
        Some(Style { tokens, bold: (key.len() % 2) as f64, ..Style::default() })
    };
    for (style, protocol) in [
        (StyleControl::Exact, Protocol::ArenaHardV2),
        (StyleControl::Compat, Protocol::ArenaHardV2),
        (StyleControl::Compat, Protocol::ArenaHardV01),
    ] {
        let found = rows.scores(&Counting { style, style_of: &style_of, ..counting(protocol, "base") }).unwrap();
        let table = &found["categories"]["arena-hard-v0.1"];
        let (plain, styled) = (&table["models"]["m"], &table["style_controlled"]["models"]["m"]);
        let (plain, styled) = (plain["score"].as_f64().unwrap(), styled["score"].as_f64().unwrap());
        assert!((plain - styled).abs() < 6.0, "{plain} {styled}");
        assert!(table["style_controlled"]["rule"].as_str().unwrap().contains("style"), "a rule is given");
    }
}

#[test]
fn annotations_give_win_rates_and_lengths() {
    let row = |i: usize, preference: Option<f64>| Annotation {
        instruction: format!("{i}"),
        output_1: "ö".repeat(5 + i),
        generator_1: "base".to_owned(),
        dataset: None,
        output_2: "x".repeat(10),
        generator_2: "m".to_owned(),
        annotator: "j".to_owned(),
        preference,
        raw_completion: Value::Null,
    };
    let rows: Vec<Annotation> = [Some(2.0), Some(1.0), Some(1.5), Some(0.0), None, Some(1.25), Some(1.75)]
        .into_iter()
        .enumerate()
        .map(|(i, p)| row(i, p))
        .collect();
    let found = Rows::Alpaca(rows.clone()).scores(&counting(Protocol::AlpacaEval2, "base")).unwrap();
    let model = &found["models"]["m"];
    assert_eq!((&model["win_rate"], &model["n_total"], &model["dropped"]), (&json!(50.0), &json!(6), &json!(1)));
    assert_eq!((&model["avg_length"], &model["n_draws"]), (&json!(10), &json!(2)));
    assert_eq!(model["length_controlled"]["rule"], "length_controlled_minimal");
    let few = Counting { difficulties: Some(vec![0.0; 3]), ..counting(Protocol::AlpacaEval2, "base") };
    let error = format!("{:#}", Rows::Alpaca(rows).scores(&few).unwrap_err());
    assert!(error.contains("3 difficulties and 7 instructions"), "{error}");
}
