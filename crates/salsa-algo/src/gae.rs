//! Generalised advantage estimation.

/// Advantages and returns of one response, one of each per slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Gae {
    /// How much better each action was than the critic's value, before any whitening.
    pub advantages: Vec<f64>,
    /// The targets of the critic: `advantages + values`.
    pub returns: Vec<f64>,
}

/// Computes advantages and returns of one response.
///
/// ```text
/// delta[t]      = rewards[t] + gamma * values[t+1] - values[t]          values[n] = 0: a response ends for good
/// advantages[t] = delta[t] + gamma * lambda * advantages[t+1]           advantages[n] = 0
/// returns[t]    = advantages[t] + values[t]
/// ```
///
/// `rewards` and `values` have one entry per slot; `values[t]` is the critic's value *before* token t. No whitening
/// here. Source: Schulman et al. 2016 (1506.02438), equation 16. PPO-RLHF uses gamma 1, lambda .95.
///
/// ```
/// // gamma 1, lambda .5:  delta = [.5 - 0, 1 - .5] = [.5, .5]
/// let gae = salsa_algo::gae::gae(&[0.0, 1.0], &[0.0, 0.5], 1.0, 0.5);
/// assert_eq!(gae.advantages, [0.75, 0.5]);
/// assert_eq!(gae.returns, [0.75, 1.0]);
/// ```
///
/// # Panics
/// If the lengths differ.
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Gae {
    assert_eq!(rewards.len(), values.len(), "one value per reward");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    Gae { advantages, returns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_close;
    use crate::random::uniform;

    fn sample(stream: u64) -> Vec<f64> {
        (0..9).map(|i| uniform(11, stream, i) * 2.0 - 1.0).collect()
    }

    #[test]
    fn pencil_case_with_discount() {
        // gamma .5, lambda .5: delta = [1 + .5*4 - 2, 2 + .5*6 - 4, 3 - 6] = [1, 1, -3]
        // A2 = -3, A1 = 1 + .25*(-3) = .25, A0 = 1 + .25*.25 = 1.0625
        let gae = gae(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0], 0.5, 0.5);
        assert_eq!(gae.advantages, [1.0625, 0.25, -3.0]);
        assert_eq!(gae.returns, [3.0625, 4.25, 3.0]);
    }

    #[test]
    fn lambda_one_gives_the_discounted_sum_of_rewards_whatever_the_critic() {
        let (rewards, gamma) = (sample(0), 0.9f64);
        let expected: Vec<f64> =
            (0..9).map(|t| (t..9).map(|s| gamma.powi((s - t) as i32) * rewards[s]).sum()).collect();
        assert_close(&gae(&rewards, &sample(1), gamma, 1.0).returns, &expected, 1e-14);
    }

    #[test]
    fn lambda_zero_gives_the_one_step_error() {
        let (rewards, values) = (sample(2), sample(3));
        let next = |t: usize| values.get(t + 1).copied().unwrap_or(0.0);
        let expected: Vec<f64> = (0..9).map(|t| rewards[t] + 0.9 * next(t) - values[t]).collect();
        assert_close(&gae(&rewards, &values, 0.9, 0.0).advantages, &expected, 1e-15);
    }

    #[test]
    fn a_perfect_critic_leaves_no_advantage() {
        let rewards = sample(4);
        let values: Vec<f64> = (0..9).map(|t| rewards[t..].iter().sum()).collect();
        assert_close(&gae(&rewards, &values, 1.0, 0.95).advantages, &[0.0; 9], 1e-15);
    }

    #[test]
    fn nothing_in_nothing_out() {
        assert_eq!(gae(&[], &[], 1.0, 0.95), Gae { advantages: vec![], returns: vec![] });
    }

    #[test]
    #[should_panic(expected = "one value per reward")]
    fn lengths_must_agree() {
        gae(&[0.0], &[], 1.0, 0.95);
    }
}
