//! Readable names of keys.

/// Inside a sentence: `sft_a` → `SFT A`, `my_run` → `my run`.
pub(super) fn spoken(key: &str) -> String {
    let words = key.split('_').filter(|word| !word.is_empty()).map(|word| match word {
        "sft" | "ppo" | "grpo" | "rloo" | "dpo" | "kto" | "orpo" | "cpo" | "kl" | "mkl" | "salsa" | "ema" => {
            word.to_uppercase()
        }
        _ if word.chars().count() == 1 => word.to_uppercase(),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// On its own: `sft_a` → `SFT A`, `my_run` → `My run`.
pub(crate) fn label(key: &str) -> String {
    let spoken = spoken(key);
    let mut rest = spoken.chars();
    rest.next().into_iter().flat_map(char::to_uppercase).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_read_like_names() {
        let cases = [
            ("sft_a", "SFT A"),
            ("salsa", "SALSA"),
            ("reward", "Reward"),
            ("ppo_high_kl", "PPO high KL"),
            ("é__x", "É X"),
        ];
        for (key, expected) in cases {
            assert_eq!(label(key), expected);
        }
        assert_eq!((spoken("my_run"), spoken("sft_a"), label("")), ("my run".into(), "SFT A".into(), String::new()));
    }
}
