//! Preferences among responses that were just sampled: which of them become pairs.

/// Which responses to a prompt become pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Pairing {
    /// One pair: the response with the highest reward against the one with the lowest.
    #[default]
    BestWorst,
    /// Every two responses in the order of sampling: the first against the second, the third against the fourth.
    Neighbours,
}

impl Pairing {
    /// Pairs per prompt with `group` responses.
    pub fn per_prompt(self, group: usize) -> usize {
        match self {
            Pairing::BestWorst => 1,
            Pairing::Neighbours => group / 2,
        }
    }
}

/// Two responses to a prompt, by their indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The response with the higher reward; of equal ones the first.
    pub chosen: usize,
    /// The other one.
    pub rejected: usize,
    /// Whether their rewards are equal: the order says nothing.
    pub is_tie: bool,
}

/// Returns the pairs of responses with these rewards, `group` adjacent ones per prompt: with two of them those of online
/// DPO (Guo et al. 2024, 2402.04792) as in TRL.
///
/// ```
/// use salsa_algo::preference::online::{Pairing, Ranked, pairs};
/// let rewards = [1.0, 3.0, 3.0, 0.5];
/// assert_eq!(pairs(&rewards, 4, Pairing::BestWorst), [Ranked { chosen: 1, rejected: 3, is_tie: false }]);
/// let both = pairs(&rewards, 4, Pairing::Neighbours);
/// assert_eq!((both[0].chosen, both[0].rejected, both[1].chosen, both[1].rejected), (1, 0, 2, 3));
/// ```
///
/// # Panics
/// If a group has fewer than two responses, or the rewards are no whole number of groups.
pub fn pairs(rewards: &[f64], group: usize, pairing: Pairing) -> Vec<Ranked> {
    assert!(group >= 2 && rewards.len().is_multiple_of(group), "whole groups of two or more");
    let part = match pairing {
        Pairing::BestWorst => group,
        Pairing::Neighbours => 2,
    };
    let of_group = |start: usize| (0..group / part).map(move |at| start + at * part);
    let starts = (0..rewards.len()).step_by(group).flat_map(of_group);
    starts.map(|start| extremes(rewards, start..start + part)).collect()
}

/// The first of the highest rewards and the last of the lowest.
fn extremes(rewards: &[f64], mut among: std::ops::Range<usize>) -> Ranked {
    let first = among.next().expect("a part has two responses");
    let (mut chosen, mut rejected) = (first, first);
    for at in among {
        chosen = if rewards[at] > rewards[chosen] { at } else { chosen };
        rejected = if rewards[at] <= rewards[rejected] { at } else { rejected };
    }
    Ranked { chosen, rejected, is_tie: rewards[chosen] == rewards[rejected] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_of_two_responses_even_if_all_rewards_are_equal() {
        for pairing in [Pairing::BestWorst, Pairing::Neighbours] {
            let found = pairs(&[2.0; 8], 4, pairing);
            assert_eq!(found.len(), 2 * pairing.per_prompt(4));
            for (at, pair) in found.iter().enumerate() {
                assert!(pair.is_tie && pair.chosen < pair.rejected, "{pair:?}");
                let prompt = at / pairing.per_prompt(4);
                assert_eq!((pair.chosen / 4, pair.rejected / 4), (prompt, prompt), "of one prompt");
            }
        }
    }

    #[test]
    fn an_odd_response_has_no_neighbour() {
        let found = pairs(&[0.0, 1.0, 9.0, 5.0, 4.0, 9.0], 3, Pairing::Neighbours);
        let indices: Vec<(usize, usize)> = found.iter().map(|pair| (pair.chosen, pair.rejected)).collect();
        assert_eq!(indices, [(1, 0), (3, 4)]);
        let found = pairs(&[0.0, 1.0, 9.0, 5.0, 4.0, 9.0], 3, Pairing::BestWorst);
        let indices: Vec<(usize, usize)> = found.iter().map(|pair| (pair.chosen, pair.rejected)).collect();
        assert_eq!(indices, [(2, 0), (5, 4)]);
    }
}
