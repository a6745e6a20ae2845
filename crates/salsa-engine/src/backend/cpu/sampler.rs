//! Drawing a token from a row of logits.

use super::head::log_sum;
use crate::backend::{Choice, Ranking};

/// Draws a token from logits that are already divided by the temperature, see [`crate::backend::Backend::draw`].
pub(super) fn draw(logits: &[f32], choice: &Choice, u: f32) -> (u32, f32) {
    let log_sum = log_sum(logits);
    let token = if choice.temperature == 0.0 {
        largest(logits)
    } else if choice.top_k == 0 && choice.top_p >= 1.0 {
        from_all(logits, log_sum, u)
    } else {
        from_nucleus(logits, log_sum, choice, u)
    };
    (token as u32, logits[token] - log_sum)
}

/// Ranks a row of logits, see [`crate::backend::Backend::rank`].
pub(crate) fn rank(logits: &[f32], target: u32, count: usize) -> Ranking {
    let log_sum = log_sum(logits);
    let more_likely = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
    let mut order: Vec<u32> = Vec::new();
    if count > 0 {
        order.extend(0..logits.len() as u32);
        if count < order.len() {
            order.select_nth_unstable_by(count - 1, more_likely);
            order.truncate(count);
        }
        order.sort_unstable_by(more_likely);
    }
    let logprob = |token: u32| logits[token as usize] - log_sum;
    Ranking { logprob: logprob(target), top: order.into_iter().map(|token| (token, logprob(token))).collect() }
}

/// The index of the largest logit, the first of equal ones.
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
    // The probabilities sum to slightly less than u: return the most likely token.
    largest(logits)
}

/// Draws among the `top_k` most likely tokens whose probability, most likely first, first reaches `top_p`.
fn from_nucleus(logits: &[f32], log_sum: f32, choice: &Choice, u: f32) -> usize {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let more_likely = |&a: &usize, &b: &usize| logits[b].total_cmp(&logits[a]).then(a.cmp(&b));
    if choice.top_k > 0 && choice.top_k < order.len() {
        order.select_nth_unstable_by(choice.top_k - 1, more_likely);
        order.truncate(choice.top_k);
    }
    order.sort_unstable_by(more_likely);
    let weights: Vec<f64> = order.iter().map(|&i| f64::from((logits[i] - log_sum).exp())).collect();
    let all: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let count = weights.iter().take_while(|&&w| {
        let take = kept < f64::from(choice.top_p) * all;
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

    fn frequencies(choice: &Choice) -> [f64; 4] {
        let mut count = [0f64; 4];
        for i in 0..20_000 {
            let (token, _) = draw(&logits(), choice, (i as f32 + 0.5) / 20_000.0);
            count[token as usize] += 1.0 / 20_000.0;
        }
        count
    }

    fn near(found: [f64; 4], expected: [f64; 4]) {
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.012), "{found:?}, not {expected:?}");
    }

    #[test]
    fn samples_follow_the_softmax_and_its_cuts() {
        let all = Choice { temperature: 1.0, top_k: 0, top_p: 1.0 };
        near(frequencies(&all), [0.1, 0.2, 0.3, 0.4]);
        near(frequencies(&Choice { top_k: 2, ..all }), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        // 0.4 + 0.3 reaches 0.6; 0.2 is not needed.
        near(frequencies(&Choice { top_p: 0.6, ..all }), [0.0, 0.0, 3.0 / 7.0, 4.0 / 7.0]);
        near(frequencies(&Choice { top_p: 0.71, ..all }), [0.0, 2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
        near(frequencies(&Choice { temperature: 0.0, ..all }), [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn the_most_likely_come_first_and_of_equals_the_smaller() {
        let near = |found: &[(u32, f32)], expected: &[(u32, f32)]| {
            let same = |(f, e): (&(u32, f32), &(u32, f32))| f.0 == e.0 && (f.1 - e.1.ln()).abs() < 1e-6;
            assert!(found.len() == expected.len() && found.iter().zip(expected).all(same), "{found:?}");
        };
        let ranking = rank(&logits(), 0, 2);
        near(&ranking.top, &[(3, 0.4), (2, 0.3)]);
        assert!((ranking.logprob - 0.1f32.ln()).abs() < 1e-6);
        near(&rank(&[1.0; 5], 4, 3).top, &[(0, 0.2), (1, 0.2), (2, 0.2)]);
        near(&rank(&[1.0; 2], 1, 9).top, &[(0, 0.5), (1, 0.5)]);
        assert!(rank(&logits(), 1, 0).top.is_empty());
    }

    #[test]
    fn the_logprob_is_that_of_the_full_softmax() {
        let (token, logprob) = draw(&logits(), &Choice { temperature: 1.0, top_k: 1, top_p: 1.0 }, 0.3);
        assert_eq!(token, 3);
        assert!((logprob - 0.4f32.ln()).abs() < 1e-6);
    }
}
