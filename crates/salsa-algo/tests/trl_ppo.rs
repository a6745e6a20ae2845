//! The crate against TRL's PPO arithmetic: every field of the golden numbers, TRL >= 0.12 and TRL <= 0.11.
//!
//! TRL pads; this crate does not. `Rollout` holds the real tokens only, and `padded` converts results to TRL's layout,
//! with TRL's filler after the end of a response.

#[path = "golden/trl_ppo.rs"]
mod golden;

use std::cell::RefCell;
use std::path::Path;

use golden::{EXPECTED, INPUTS};
use salsa_algo::gae::{Gae, gae};
use salsa_algo::kl::{KlController, KlEstimator, kls};
use salsa_algo::ppo::{Batch, Denominators, Settings, loss, policy_loss};
use salsa_algo::reward::{Ending, MissingEos, ScorePosition, ScoreRule, rewards, slots};
use salsa_algo::whiten::{Mean, drop_score_slots, moments, whiten};

const TOLERANCE: f64 = 1e-8;
const EOS: u32 = 2;
const PAD: f64 = 0.0;
/// TRL's log-prob after the end of a response.
const INVALID: f64 = 1.0;

/// One of the two padded rows, without its padding.
struct Row {
    tokens: usize,
    slots: usize,
    ending: Ending,
}

fn rows(at: ScorePosition) -> Vec<Row> {
    let row = |response: &[u32; 6]| {
        let eos = response.iter().position(|&t| t == EOS);
        let (tokens, ending) = eos.map_or((6, Ending::Cut), |i| (i + 1, Ending::Eos));
        Row { tokens, slots: slots(at, tokens, ending), ending }
    };
    INPUTS.response.iter().map(row).collect()
}

/// The golden numbers of one case, marked as they are compared.
struct Case {
    name: &'static str,
    open: RefCell<Vec<&'static str>>,
}

impl Case {
    fn new(name: &'static str) -> Case {
        let fields = EXPECTED.iter().filter(|(case, _, _)| *case == name).map(|(_, field, _)| *field).collect();
        Case { name, open: RefCell::new(fields) }
    }

    #[track_caller]
    fn compare(&self, field: &str, computed: &[f64]) {
        let expected = EXPECTED.iter().find(|(c, f, _)| *c == self.name && *f == field).expect("a golden field").2;
        assert_eq!(computed.len(), expected.len(), "{} {field}", self.name);
        for (i, (c, e)) in computed.iter().zip(expected).enumerate() {
            assert!((c - e).abs() <= TOLERANCE, "{} {field}[{i}]: {c}, TRL has {e}", self.name);
        }
        self.open.borrow_mut().retain(|f| *f != field);
    }

    #[track_caller]
    fn done(self) {
        assert!(self.open.borrow().is_empty(), "{}: not compared: {:?}", self.name, self.open);
    }
}

/// Arranges per-response numbers in rows of six, concatenated, padded with `filler`.
fn padded(responses: &[Vec<f64>], filler: f64) -> Vec<f64> {
    let row = |r: &Vec<f64>| r.iter().copied().chain(std::iter::repeat(filler)).take(6).collect::<Vec<f64>>();
    responses.iter().flat_map(row).collect()
}

/// Splits concatenated numbers into responses.
fn cut(flat: &[f64], lengths: impl Iterator<Item = usize>) -> Vec<Vec<f64>> {
    let mut rest = flat;
    lengths
        .map(|n| {
            let (response, behind) = rest.split_at(n);
            rest = behind;
            response.to_vec()
        })
        .collect()
}

fn real(input: &[[f64; 6]; 2], lengths: impl Iterator<Item = usize>) -> Vec<Vec<f64>> {
    input.iter().zip(lengths).map(|(row, n)| row[..n].to_vec()).collect()
}

fn sums(responses: &[Vec<f64>]) -> f64 {
    responses.iter().flatten().sum()
}

/// The computation of both forms of TRL on a rollout.
struct Rollout {
    rows: Vec<Row>,
    kl: Vec<Vec<f64>>,
    scores: Vec<f64>,
    values: Vec<Vec<f64>>,
    rewards: Vec<Vec<f64>>,
    raw: Vec<Gae>,
    advantages: Vec<f64>,
}

enum Whitening {
    AdvantagesOnly,
    RewardsToo,
}

fn rollout(at: ScorePosition, estimator: KlEstimator, beta: f64, rule: ScoreRule, whitening: Whitening) -> Rollout {
    let rows = rows(at);
    let tokens = || rows.iter().map(|r| r.tokens);
    let slots = || rows.iter().map(|r| r.slots);
    let (logprobs, refs) = (real(&INPUTS.old_logprobs, tokens()), real(&INPUTS.ref_logprobs, tokens()));
    let kl: Vec<Vec<f64>> = logprobs.iter().zip(&refs).map(|(p, r)| kls(estimator, p, r)).collect();
    let scores: Vec<f64> = INPUTS.scores.iter().zip(&rows).map(|(&s, row)| rule.apply(s, row.ending)).collect();
    let mut flat: Vec<f64> = (0..2).flat_map(|i| rewards(beta, &kl[i], scores[i], rows[i].slots)).collect();
    if let Whitening::RewardsToo = whitening {
        whiten(&mut flat, Mean::Keep);
    }
    let rewards = cut(&flat, slots());
    let values = real(&INPUTS.values, slots());
    let raw: Vec<Gae> = rewards.iter().zip(&values).map(|(r, v)| gae(r, v, 1.0, 0.95)).collect();
    let all: Vec<f64> = raw.iter().flat_map(|g| g.advantages.clone()).collect();
    let mut advantages = drop_score_slots(&all, &slots().collect::<Vec<_>>(), &tokens().collect::<Vec<_>>());
    whiten(&mut advantages, Mean::Remove);
    Rollout { rows, kl, scores, values, rewards, raw, advantages }
}

impl Rollout {
    fn tokens(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().map(|r| r.tokens)
    }

    fn slots(&self) -> impl Iterator<Item = usize> {
        self.rows.iter().map(|r| r.slots)
    }

    fn raw_advantages(&self) -> Vec<Vec<f64>> {
        self.raw.iter().map(|g| g.advantages.clone()).collect()
    }

    fn returns(&self) -> Vec<Vec<f64>> {
        self.raw.iter().map(|g| g.returns.clone()).collect()
    }
}

/// TRL >= 0.12: score after EOS, coefficient .05.
fn trl2(estimator: KlEstimator, missing_eos: MissingEos, whitening: Whitening) -> Rollout {
    rollout(ScorePosition::AfterEos, estimator, 0.05, ScoreRule { missing_eos, ..ScoreRule::default() }, whitening)
}

fn compare_trl2(name: &'static str, r: &Rollout) {
    let case = Case::new(name);
    let ones = |lengths: Vec<usize>| padded(&lengths.iter().map(|&n| vec![1.0; n]).collect::<Vec<_>>(), 0.0);
    let logprobs = real(&INPUTS.old_logprobs, r.tokens());

    let tokens: Vec<Vec<f64>> =
        INPUTS.response.iter().zip(r.tokens()).map(|(row, n)| row[..n].iter().map(|&t| t.into()).collect()).collect();
    case.compare("postprocessed", &padded(&tokens, PAD));
    case.compare("sequence_length", &r.tokens().map(|n| n as f64 - 1.0).collect::<Vec<_>>());
    case.compare("score_index", &r.slots().map(|n| n as f64 - 1.0).collect::<Vec<_>>());
    case.compare("mask", &ones(r.tokens().collect()));
    case.compare("mask_p1", &ones(r.slots().collect()));
    case.compare("logprobs", &padded(&logprobs, INVALID));
    case.compare("ref_logprobs", &padded(&real(&INPUTS.ref_logprobs, r.tokens()), INVALID));

    case.compare("scores_after_penalty", &r.scores);
    case.compare("kl", &padded(&r.kl, 0.0));
    case.compare("rewards", &padded(&r.rewards, 0.0));
    case.compare("values", &padded(&r.values, 0.0));
    case.compare("raw_advantages", &padded(&r.raw_advantages(), 0.0));
    case.compare("returns", &padded(&r.returns(), 0.0));
    case.compare("advantages", &padded(&cut(&r.advantages, r.tokens()), 0.0));

    let (kl, non_score) = (sums(&r.kl) / 2.0, -0.05 * sums(&r.kl) / 2.0);
    case.compare("objective_kl", &[kl]);
    case.compare("non_score_reward", &[non_score]);
    case.compare("rlhf_reward", &[non_score + r.scores.iter().sum::<f64>() / 2.0]);
    case.compare("entropy_masked", &[-sums(&logprobs) / 2.0]);
    // Before trl#6121 each of the 3 padded places counted as a log-prob of 1.
    case.compare("entropy_july2026", &[(-sums(&logprobs) - 3.0) / 2.0]);
    case.done();
}

#[test]
fn trl_from_0_12() {
    use KlEstimator::{K1, K3};
    use Whitening::{AdvantagesOnly, RewardsToo};
    compare_trl2("trl2_k1", &trl2(K1, MissingEos::Keep, AdvantagesOnly));
    compare_trl2("trl2_k3", &trl2(K3, MissingEos::Keep, AdvantagesOnly));
    compare_trl2("trl2_k1_penalty", &trl2(K1, MissingEos::Subtract(1.0), AdvantagesOnly));
    compare_trl2("trl2_k1_whiten", &trl2(K1, MissingEos::Keep, RewardsToo));
}

#[test]
fn trl_losses() {
    let r = trl2(KlEstimator::K1, MissingEos::Subtract(1.0), Whitening::AdvantagesOnly);
    let flat = |input, lengths: Vec<usize>| real(input, lengths.into_iter()).concat();
    let logprobs = flat(&INPUTS.new_logprobs, r.tokens().collect());
    let old_logprobs = flat(&INPUTS.old_logprobs, r.tokens().collect());
    let batch = Batch {
        logprobs: &logprobs,
        old_logprobs: &old_logprobs,
        advantages: &r.advantages,
        values: &flat(&INPUTS.new_values, r.slots().collect()),
        old_values: &r.values.concat(),
        returns: &r.returns().concat(),
    };
    let result = loss(&batch, &Settings::default(), Denominators { tokens: 9, slots: 10 });

    let case = Case::new("loss_k1_penalty");
    case.compare("pg_loss", &[result.policy_loss]);
    case.compare("vf_loss", &[result.value_loss]);
    case.compare("loss", &[result.loss]);
    case.compare("pg_clipfrac", &[result.policy.clip_fraction]);
    case.compare("vf_clipfrac", &[result.value_clip_fraction]);
    // TRL averages these two over all 12 places, where the 3 padded ones have ratio 1 and no KL.
    let over_all = policy_loss(&logprobs, &old_logprobs, &r.advantages, 0.2, 12).stats;
    case.compare("approxkl_unmasked", &[over_all.approx_kl]);
    case.compare("ratio_unmasked", &[over_all.ratio_mean + 3.0 / 12.0]);
    case.done();

    // Over the real tokens only, as we log them; the figures are 12/9 of TRL's without the padded places.
    assert!((result.policy.approx_kl - 0.016388889).abs() < TOLERANCE);
    assert!((result.policy.ratio_mean - 1.050338299).abs() < TOLERANCE);
}

#[test]
fn trl_up_to_0_11() {
    let r = rollout(ScorePosition::LastToken, KlEstimator::K1, 0.2, ScoreRule::default(), Whitening::AdvantagesOnly);
    let case = Case::new("trl1_kl");
    // This TRL leaves the penalty of the arbitrary entries after the end of row 0: -.2 * (-3 - -2).
    case.compare("rewards", &padded(&r.rewards, 0.2));
    case.compare("raw_advantages", &padded(&r.raw_advantages(), 0.0));
    case.compare("returns", &padded(&r.returns(), 0.0));
    // And it whitens the zeros there along with the rest, by the moments of the real tokens.
    let real_tokens = moments(&r.raw_advantages().concat());
    let whitened_zero = -real_tokens.mean / (real_tokens.variance + 1e-8).sqrt();
    case.compare("advantages", &padded(&cut(&r.advantages, r.tokens()), whitened_zero));
    case.compare("objective_kl", &[sums(&r.kl) / 2.0]);
    case.done();
}

#[test]
fn trl_adaptive_kl() {
    let adaptive = KlController::Adaptive { target: 6.0, horizon: 10_000.0 };
    let case = Case::new("adaptive_kl");
    case.compare("", &[9.0, 6.6, 1.0].map(|kl| adaptive.update(0.2, kl, 128)));
    case.done();
}

#[test]
fn no_case_is_forgotten() {
    let tested =
        ["trl2_k1", "trl2_k3", "trl2_k1_penalty", "trl2_k1_whiten", "loss_k1_penalty", "trl1_kl", "adaptive_kl"];
    for (case, field, _) in EXPECTED {
        assert!(tested.contains(case), "{case} {field} is compared nowhere");
    }
}

/// The transcription equals the file it was made from, if that file exists.
#[test]
fn the_transcription_equals_the_json() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden/trl_ppo.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: {} is not there", path.display());
        return;
    };
    let listed: Vec<(String, String, Vec<f64>)> =
        EXPECTED.iter().map(|(c, f, n)| (c.to_string(), f.to_string(), n.to_vec())).collect();
    assert_eq!(read_json(&text), listed);
}

/// Reads the two-level objects of the golden file: (case, field, all numbers in order; `true` as 1). Every number in it
/// is the value of a field of a case or of a case itself, and no key contains an escape.
fn read_json(text: &str) -> Vec<(String, String, Vec<f64>)> {
    let mut fields: Vec<(String, String, Vec<f64>)> = Vec::new();
    let (mut depth, mut case) = (0, String::new());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match c {
            '"' => 2 + rest[1..].find('"').expect("a closing quote"),
            _ if c.is_ascii_alphanumeric() || c == '-' => {
                rest.find(|c: char| ",]} \n".contains(c)).expect("something behind a number")
            }
            _ => 1,
        };
        let (token, behind) = rest.split_at(length);
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            '"' if depth == 1 => {
                case = token.trim_matches('"').to_string();
                if behind.trim_start_matches([':', ' ', '\n']).starts_with('[') {
                    fields.push((case.clone(), String::new(), Vec::new()));
                }
            }
            '"' => fields.push((case.clone(), token.trim_matches('"').to_string(), Vec::new())),
            _ if length > 1 || c.is_ascii_digit() => {
                let number = match token {
                    "true" => 1.0,
                    "false" => 0.0,
                    number => number.parse().expect("a number"),
                };
                fields.last_mut().expect("a key before a number").2.push(number);
            }
            _ => {}
        }
        rest = behind;
    }
    fields
}
