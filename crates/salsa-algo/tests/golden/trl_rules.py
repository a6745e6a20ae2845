"""Golden numbers of rule rewards from TRL's own code: python trl_rules.py > trl_rules.rs (TRL 1.16.0).

The reward functions run as they are. The cosine reward asks TRL's `accuracy_reward` for correctness, which is replaced
by the correctness given here.
"""
import random

import trl
from trl.rewards import accuracy_rewards, format_rewards, other_rewards

assert trl.__version__ == "1.16.0", trl.__version__
dice = random.Random(7)

print("//! Numbers of TRL 1.16.0, written by `trl_rules.py`.\n")

print("/// Response; has the format.\npub(super) const THINK: &[(&str, f64)] = &[")
texts = ["<think>a</think>b", "<think>a</think>", "<think></think>", "<think>\na\n</think>\nb\n", " <think>a</think>",
         "\n<think>a</think>", "<think>a", "a</think>", "<think>a<think>b</think>", "<think>a</think><think>b</think>",
         "<think>a</think></think>", "</think><think>", "<think>a</think>b<think>", "", "<THINK>a</THINK>",
         "<think >a</think>", "<think>a\r\n</think>\u2028b", "<think>é</think>"]
for text, reward in zip(texts, format_rewards.think_format_reward([[{"content": text}] for text in texts])):
    escaped = "".join(c if 32 <= ord(c) < 127 else "\\u{%x}" % ord(c) for c in text)
    print(f'    ("{escaped}", {reward!r}),')
print("];\n")

print("/// Length, limit, cache; reward.\npub(super) const OVERLONG: &[(usize, usize, usize, f64)] = &[")
for limit, cache in [(100, 20), (100, 0), (7, 3), (20480, 4096), (10, 30)]:
    function = other_rewards.get_soft_overlong_punishment(limit, cache)
    start = max(limit - cache, 0)
    for length in sorted({0, 1, start, start + 1, limit - 1, limit, limit + 1, 3 * limit}):
        print(f"    ({length}, {limit}, {cache}, {function([[1] * length])[0]!r}),")
print("];\n")

print("/// Correct, length, greatest length, the four values; reward.")
print("pub(super) const COSINE: &[(bool, usize, usize, [f64; 4], f64)] = &[")
for values in [(-1.0, -0.5, 0.5, 1.0), (-10.0, 0.0, 1.0, 2.0)]:
    for correct in [True, False]:
        accuracy_rewards.accuracy_reward = lambda completions, solution: [float(correct)]
        for limit in [100, 17]:
            function = accuracy_rewards.get_cosine_scaled_reward(limit, *values)
            for length in [0, 1, 13, 50, 99, 100, 101, 1000]:
                reward = function([None], [None], [[1] * length])[0]
                print(f"    ({str(correct).lower()}, {length}, {limit}, {list(values)}, {reward!r}),")
print("];\n")

print("/// Tokens, n, greatest penalty; reward.\npub(super) const REPETITION: &[(&[u32], usize, f64, f64)] = &[")
for kinds, length in [(1, 0), (1, 1), (1, 12), (2, 15), (3, 20), (4, 20), (50, 20), (2, 3)]:
    ids = [dice.randrange(kinds) for _ in range(length)]
    for n, penalty in [(1, -1.0), (2, -0.3), (3, -1.0), (4, -2.5)]:
        reward = other_rewards.get_repetition_penalty_reward(n, penalty)([ids])[0]
        print(f"    (&{ids}, {n}, {penalty!r}, {reward!r}),")
print("];")
