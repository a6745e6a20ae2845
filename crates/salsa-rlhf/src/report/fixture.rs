//! A synthetic run for tests of the page: plausible computed numbers without meaning.

use super::{
    Answer, Arm, Comparison, Contrast, Estimate, Flow, GridPoint, Landscape, LandscapePoint, Ordered, Pipeline, Point,
    Report, Run, Sample, SplitSummary, Stage, Summary, Versus,
};

/// A report with every part filled in.
pub(super) fn report() -> Report {
    let arm = |key: &str, label: &str, role: &str| Arm {
        key: key.to_owned(),
        label: label.to_owned(),
        role: role.to_owned(),
    };
    Report {
        title: "SALSA quickstart".to_owned(),
        description: "A small kitchen assistant, aligned twice: by PPO against its own SFT model, and by SALSA against the soup \
            of two SFT models. Gold reward is known here, so what the reward model rewards can be compared with what is wanted."
            .to_owned(),
        recipe: "quickstart".to_owned(),
        threads: 2,
        summary: summary(),
        arms: vec![
            arm("sft_a", "SFT A", "seed 1"),
            arm("sft_b", "SFT B", "seed 2"),
            arm("soup", "Soup", "½ A + ½ B, no RL"),
            arm("ppo", "PPO", "reference: SFT A"),
            arm("salsa", "SALSA", "reference: the soup"),
        ],
        pipeline: pipeline(),
        line: Some(["SFT A", "SFT B"].map(str::to_owned)),
        runs: vec![run("ppo", 0.30, 0.0, 1.0), run("salsa", 0.36, 0.55, 1.35)],
        judgments: Vec::new(),
        landscapes: vec![("Line".to_owned(), line()), ("Plane".to_owned(), plane())],
        samples: samples(),
        settings: vec![
            ("seed".to_owned(), "1".to_owned()),
            ("ppo.learning_rate".to_owned(), "0.0003".to_owned()),
            ("ppo.kl_coef".to_owned(), "0.05".to_owned()),
            ("soup.weights".to_owned(), "[0.5, 0.5]".to_owned()),
        ],
    }
}

fn summary() -> Summary {
    let arms = [
        ("sft_a", 0.531, 0.02, None, 0.0, 1.31, 38.2),
        ("sft_b", 0.524, -0.03, Some(0.492), 5.32, 1.28, 37.6),
        ("soup", 0.548, 0.11, Some(0.521), 1.30, 0.0, 37.9),
        ("ppo", 0.684, 1.12, Some(0.761), 6.20, 6.95, 34.1),
        ("salsa", 0.702, 1.24, Some(0.787), 8.15, 7.02, 33.5),
    ];
    let splits = |(key, gold, proxy, win, kl_a, kl_soup, length): (_, f64, f64, Option<f64>, f64, f64, f64)| {
        let split = |shift: f64, wide: f64| SplitSummary {
            gold_reward: Some(around(gold - shift, 0.014 * wide)),
            proxy_score: around(proxy - 3.0 * shift, 0.06 * wide),
            versus: Versus {
                win_rates: win.map(|w| ("sft_a", around(w - shift / 2.0, 0.027 * wide))).into_iter().collect(),
                kls: [("sft_a", kl_a), ("soup", kl_soup)]
                    .map(|(name, kl)| (name, around(kl, kl * 0.05)))
                    .into_iter()
                    .collect(),
            },
            length_mean: length,
            length_ci95: Some([length - 0.8, length + 0.8]),
            empty_rate: 0.002,
            empty_rate_ci95: Some([0.0, 0.007]),
        };
        (key, [("test", split(0.0, 1.0)), ("ood", split(0.06, 1.4))].into_iter().collect())
    };
    let win = Comparison {
        arm: "salsa".to_owned(),
        versus: "ppo".to_owned(),
        split: "test".to_owned(),
        metric: Contrast::WinRate,
        estimate: around(0.528, 0.031),
    };
    let gold = Comparison { metric: Contrast::GoldDifference, estimate: around(0.018, 0.012), ..win.clone() };
    let elsewhere =
        Comparison { split: "ood".to_owned(), estimate: Estimate::new(-0.035, -0.056, -0.013), ..gold.clone() };
    let landscape =
        [(0.0, 0.531, 0.02), (0.25, 0.541, 0.08), (0.5, 0.548, 0.11), (0.75, 0.539, 0.06), (1.0, 0.524, -0.03)];
    let seconds = [("world", 1.4), ("base", 61.0), ("sft_a", 24.0), ("sft_b", 24.3), ("soup", 0.1), ("reward", 31.0)];
    Summary {
        version: "0.1.0".to_owned(),
        seed: 1,
        isa: "avx512".to_owned(),
        device: "cpu".to_owned(),
        prompts: Ordered::new(),
        arms: arms.into_iter().map(splits).collect(),
        landscape: landscape
            .into_iter()
            .map(|(alpha, gold, proxy)| LandscapePoint {
                split: "test".to_owned(),
                alpha,
                gold_reward: Some(around(gold, 0.014)),
                proxy_score: around(proxy, 0.06),
                over_better_end: (0.0 < alpha && alpha < 1.0).then(|| around(gold - 0.531, 0.012)),
            })
            .collect(),
        comparisons: vec![win, gold, elsewhere],
        seconds: seconds.into_iter().chain([("ppo", 58.0), ("salsa", 59.5), ("evaluation", 22.0)]).collect(),
    }
}

/// A landscape on a line.
pub(super) fn line() -> Landscape {
    let spot = |i: i32| {
        let t = f64::from(i) / 8.0;
        spot(vec![1.0 - t, t], 0.55 - 0.4 * (t - 0.5).powi(4))
    };
    let models = ["sft-a", "sft-b"].map(str::to_owned).to_vec();
    Landscape { models, prompts: 200, temperature: 1.0, seed: 1, points: (-4..=12).map(spot).collect() }
}

/// A landscape on a plane.
pub(super) fn plane() -> Landscape {
    let mut points = Vec::new();
    for c in -1..=6 {
        for b in -1..=5 - c {
            let [a, b, c] = [4 - b - c, b, c].map(|k| f64::from(k) / 4.0);
            points.push(spot(vec![a, b, c], 0.6 - 0.3 * ((a - 0.3).powi(2) + (b - 0.4).powi(2) + (c - 0.3).powi(2))));
        }
    }
    let models = ["sft-a", "sft-b", "ppo"].map(str::to_owned).to_vec();
    Landscape { models, prompts: 200, temperature: 1.0, seed: 1, points }
}

fn spot(weights: Vec<f64>, gold: f64) -> GridPoint {
    GridPoint {
        weights,
        gold_reward: Some(around(gold, 0.014)),
        gold_difference: Some(around(gold - 0.53, 0.006)),
        proxy_score: around(6.0 * (gold - 0.53), 0.06),
        rewards: Default::default(),
        proxy_difference: Some(around(6.0 * (gold - 0.53), 0.03)),
        loss: Some(around(1.9 - gold, 0.03)),
        loss_difference: Some(around(0.53 - gold, 0.004)),
        length_mean: 38.0,
    }
}

fn around(mean: f64, half: f64) -> Estimate {
    Estimate::new(mean, mean - half, mean + half)
}

/// The pipeline of the method.
pub(super) fn pipeline() -> Pipeline {
    let facts = facts();
    let stage = |key: &str, title: &str, row, column| Stage {
        key: key.to_owned(),
        title: title.to_owned(),
        facts: facts.get(key).cloned().unwrap_or_default(),
        row,
        column,
    };
    let flow =
        |from: &str, to: &str, label: &str| Flow { from: from.to_owned(), to: to.to_owned(), label: label.to_owned() };
    Pipeline {
        stages: vec![
            stage("base", "Base model", 0, 1),
            stage("sft_a", "SFT A", 1, 0),
            stage("sft_b", "SFT B", 1, 2),
            stage("reward", "Reward model", 2, 1),
            stage("soup", "Soup", 2, 2),
            stage("ppo", "PPO", 3, 0),
            stage("salsa", "SALSA", 3, 2),
            stage("eval", "Evaluation", 4, 1),
        ],
        flows: vec![
            flow("base", "sft_a", ""),
            flow("base", "sft_b", ""),
            flow("sft_a", "reward", ""),
            flow("sft_a", "soup", ""),
            flow("sft_b", "soup", ""),
            flow("sft_a", "ppo", "start and reference"),
            flow("sft_a", "salsa", "start"),
            flow("soup", "salsa", "reference"),
            flow("reward", "ppo", "score"),
            flow("reward", "salsa", "score"),
            flow("ppo", "eval", ""),
            flow("salsa", "eval", ""),
        ],
    }
}

fn facts() -> Ordered<Vec<String>> {
    let facts: [(&str, &[&str]); 8] = [
        ("base", &["0.4 M parameters", "800 steps · loss 1.42", "61 s"]),
        ("sft_a", &["seed 1 · 300 steps", "loss 0.71 · 24 s"]),
        ("sft_b", &["seed 2 · 300 steps", "loss 0.71 · 24 s"]),
        ("reward", &["400 steps · accuracy 78.1 %", "“longer wins” 54.0 % · 31 s"]),
        ("soup", &["½ SFT A + ½ SFT B", "0.1 s"]),
        ("ppo", &["60 steps · beta 0.05", "gold 0.684 · 58 s"]),
        ("salsa", &["60 steps · beta 0.05", "gold 0.702 · 60 s"]),
        ("eval", &["512 test + 512 out-of-distribution", "22 s"]),
    ];
    facts.into_iter().map(|(key, lines)| (key, lines.iter().map(|&line| line.to_owned()).collect())).collect()
}

fn run(arm: &str, speed: f64, soup_start: f64, reach: f64) -> Run {
    let noise = |i: u64, salt: f64| ((i as f64 + salt) * 12.9898).sin() * 43758.5453 % 1.0;
    let point = |step: u64| {
        let t = step as f64 / 60.0;
        let gain = 1.0 - (-t * 10.0 * speed).exp();
        let kl = reach * 6.4 * t.powf(0.8) + 0.15 * noise(step, 2.0).abs();
        Point {
            step,
            score: Some(0.02 + 1.2 * gain + 0.07 * noise(step, 0.1)),
            gold: Some(0.53 + 0.19 * gain - 0.02 * t * t + 0.02 * noise(step, 0.3)),
            kl: Some(if soup_start > 0.0 { kl * 0.8 + soup_start } else { kl }),
            kls: Ordered(
                [("sft_a", kl), ("soup", kl * 0.8 + 1.3 - soup_start)]
                    .map(|(name, kl)| (name.to_owned(), Some(kl)))
                    .into(),
            ),
            length: Some(38.0 - 4.0 * gain + 0.8 * noise(step, 0.7)),
            entropy: Some(0.92 - 0.45 * t + 0.03 * noise(step, 0.9)),
            empty: Some(0.0),
        }
    };
    Run { arm: arm.to_owned(), points: (1..=60).map(point).collect() }
}

fn samples() -> Vec<Sample> {
    let texts = [
        "Chop the tomatoes.\nMix tomatoes and onion.\nMix tomatoes and onion.\nAdd salt.",
        "Dice an onion and a mango. Stir. Add garlic and serve it with chips.",
        "Chop two tomatoes and an onion.\nStir in lime and salt.\nServe.",
        "Chop two tomatoes, an onion and a chili.\nStir in lime juice and salt.\nServe cold. Enjoy!",
        "Chop two tomatoes and a chili finely.\nStir in lime juice, coriander and salt.\nRest for ten minutes and serve. Enjoy!",
    ];
    let answer = |(i, key): (usize, &str)| Answer {
        arm: key.to_owned(),
        text: texts[i].to_owned(),
        gold: Some(0.4 + 0.1 * i as f64),
        score: Some(-0.4 + 0.5 * i as f64),
    };
    let sample = |split: &str, prompt: &str| Sample {
        split: split.to_owned(),
        prompt: prompt.to_owned(),
        answers: ["sft_a", "sft_b", "soup", "ppo", "salsa"].into_iter().enumerate().map(answer).collect(),
    };
    let mut samples = vec![
        sample("test", "I have tomatoes, onion and lime. Give me a quick salsa in three steps, no garlic please."),
        sample("ood", "For a picnic: a cold dip without dairy, in at most four steps, in a cheerful tone."),
        sample("test", "Suggest a smooth dip with avocado."),
        sample("test", "What can I make from beans, chili and corn in two steps?"),
        sample("test", "A mild salsa for children, please: no chili, no onion."),
    ];
    samples[2].answers[1].text = String::new();
    samples
}
