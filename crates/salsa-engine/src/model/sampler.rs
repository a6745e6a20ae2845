//! From a row of logits to a token.

use super::decode::Sampling;
use crate::backend::cpu::log_sum;
use crate::random::Philox;

/// Where in which random stream a token is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    pub prompt: u64,
    pub sample: u32,
    /// Index of the new token in the response.
    pub position: usize,
}

/// Draws a token from logits that are already divided by the temperature. Returns it with its log-prob under the full
/// softmax (not the one cut by top-k or top-p), which is what a training forward gives.
pub(super) fn draw(logits: &[f32], sampling: &Sampling, at: Draw) -> (u32, f32) {
    let log_sum = log_sum(logits);
    let token = if sampling.temperature == 0.0 {
        largest(logits)
    } else {
        let u = Philox::new(sampling.seed, at.prompt).uniform_at(u64::from(at.sample), at.position as u64);
        if sampling.top_k == 0 && sampling.top_p >= 1.0 {
            from_all(logits, log_sum, u)
        } else {
            from_nucleus(logits, log_sum, sampling, u)
        }
    };
    (token as u32, logits[token] - log_sum)
}

/// The first of the largest.
fn largest(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// Inverts the cumulative distribution at `u`, first by blocks of 64, then inside the block.
fn from_all(logits: &[f32], log_sum: f32, u: f32) -> usize {
    let probability = |x: &f32| f64::from((x - log_sum).exp());
    let mut left = f64::from(u);
    for (block, logits) in logits.chunks(64).enumerate() {
        let total: f64 = logits.iter().map(probability).sum();
        if left < total {
            for (i, x) in logits.iter().enumerate() {
                left -= probability(x);
                if left < 0.0 {
                    return block * 64 + i;
                }
            }
        }
        left -= total.min(left);
    }
    // The probabilities sum to a little less than u: the most likely token is as good as any.
    largest(logits)
}

/// Draws among the `top_k` most likely tokens whose probability, most likely first, first reaches `top_p`.
fn from_nucleus(logits: &[f32], log_sum: f32, sampling: &Sampling, u: f32) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let more_likely = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if sampling.top_k > 0 && sampling.top_k < order.len() {
        order.select_nth_unstable_by(sampling.top_k - 1, more_likely);
        order.truncate(sampling.top_k);
    }
    order.sort_unstable_by(more_likely);
    let weights: Vec<f64> = order.iter().map(|&i| f64::from((logits[i] - log_sum).exp())).collect();
    let all: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let count = weights.iter().take_while(|&&w| {
        let take = kept < f64::from(sampling.top_p) * all;
        kept += if take { w } else { 0.0 };
        take
    });
    let count = count.count().max(1);
    let total: f64 = weights[..count].iter().sum();
    let mut left = f64::from(u) * total;
    for (&token, weight) in order[..count].iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return token;
        }
    }
    order[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.1, 0.2, 0.3, 0.4 as logits.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.2, 0.3, 0.4].iter().map(|p| p.ln() + 3.0).collect()
    }

    fn frequencies(sampling: &Sampling) -> [f64; 4] {
        let mut count = [0f64; 4];
        for i in 0..20_000 {
            let (token, _) = draw(&logits(), sampling, Draw { prompt: 1, sample: i, position: 3 });
            count[token as usize] += 1.0 / 20_000.0;
        }
        count
    }

    fn near(found: [f64; 4], expected: [f64; 4]) {
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.012), "{found:?}, not {expected:?}");
    }

    #[test]
    fn samples_follow_the_softmax_and_its_cuts() {
        let sampling = Sampling { seed: 5, ..Sampling::default() };
        near(frequencies(&sampling), [0.1, 0.2, 0.3, 0.4]);
        near(frequencies(&Sampling { top_k: 2, ..sampling.clone() }), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        // 0.4 + 0.3 reaches 0.6; 0.2 is not needed.
        near(frequencies(&Sampling { top_p: 0.6, ..sampling.clone() }), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        near(frequencies(&Sampling { top_p: 0.71, ..sampling.clone() }), [0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
        near(frequencies(&Sampling { temperature: 0.0, ..sampling }), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn the_logprob_is_that_of_the_full_softmax() {
        let at = Draw { prompt: 0, sample: 0, position: 0 };
        let (token, logprob) = draw(&logits(), &Sampling { top_k: 1, ..Sampling::default() }, at);
        assert_eq!(token, 3);
        assert!((logprob - 0.4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn a_draw_depends_on_every_part_of_its_place() {
        let flat = vec![0f32; 1000];
        let sampling = Sampling::default();
        let token = |prompt, sample, position| draw(&flat, &sampling, Draw { prompt, sample, position }).0;
        let base = token(1, 1, 1);
        assert_eq!(base, token(1, 1, 1));
        assert!(base != token(2, 1, 1) && base != token(1, 2, 1) && base != token(1, 1, 2));
    }
}
