"""Golden numbers of online DPO from TRL's own code: python trl_online_dpo.py > trl_online_dpo.rs (TRL 1.16.0).

`training_step` of `OnlineDPOTrainer` runs in f64 on given log-probs and rewards: generation, forward passes and reward
functions are replaced by functions that return them. Gradients by autograd. TRL has the first responses to all prompts
before the second ones; here the responses to a prompt are neighbours.
"""
import collections
import contextlib
import io
import random
import textwrap
import types

import torch
import trl
from trl.experimental.online_dpo.online_dpo_trainer import OnlineDPOTrainer

assert trl.__version__ == "1.16.0", trl.__version__
torch.set_default_dtype(torch.float64)
torch.Tensor.float = lambda self: self.double()
PROMPTS = 4
LENGTHS = [3, 1, 5, 2, 4, 1, 2, 2]  # two responses to each prompt in turn
ENDED = [True, False, True, True, False, True, False, False]
LONGEST = max(LENGTHS)
EOS = 9
# Where TRL has the response that is here at this place.
ORDER = [half + prompt * 2 for half in (0, 1) for prompt in range(PROMPTS)]


class Accelerator:
    def gather_for_metrics(self, x):
        return x

    def backward(self, loss):
        loss.backward()


def case(seed):
    """Log-probs of the responses under policy and reference, and their rewards, of which two are equal."""
    dice = random.Random(seed)
    draw = lambda low, high: [[dice.uniform(low, high) for _ in range(LONGEST)] for _ in LENGTHS]
    policy = draw(-2.0, -0.05)
    reference = [[p + d for p, d in zip(*rows)] for rows in zip(policy, draw(-0.5, 0.5))]
    rewards = [dice.uniform(-2.0, 2.0) for _ in LENGTHS]
    rewards[6] = rewards[7]
    return policy, reference, rewards


def step(seed, loss_type, beta, penalty):
    policy, reference, rewards = case(seed)
    mask = torch.tensor([[int(t < length) for t in range(LONGEST)] for length in LENGTHS])[ORDER]
    ids = torch.zeros_like(mask)
    for row, at in enumerate(ORDER):
        if ENDED[at]:
            ids[row, LENGTHS[at] - 1] = EOS
    policy = torch.tensor(policy)[ORDER].requires_grad_()
    reference = torch.tensor(reference)[ORDER]
    trainer = OnlineDPOTrainer.__new__(OnlineDPOTrainer)
    prompt = torch.zeros(2 * PROMPTS, 1, dtype=mask.dtype)
    trainer.__dict__.update(
        args=types.SimpleNamespace(
            use_vllm=False, loss_type=loss_type, missing_eos_penalty=penalty, torch_empty_cache_steps=None, optim="adamw",
            n_gpu=1, gradient_accumulation_steps=1),
        _beta=beta, accelerator=Accelerator(), stats=collections.defaultdict(list), reward_funcs=[None],
        eos_token_ids=[EOS], ref_model="reference", model="policy",
        processing_class=types.SimpleNamespace(batch_decode=lambda ids, **k: ["" for _ in ids]),
        _generate=lambda *a: (prompt, prompt, ids, mask, None),
        # TRL masks what is behind the end of a response itself, except in the KL, which is not used here.
        _forward=lambda model, *a: reference if model == "reference" else policy,
        _calculate_rewards_from_functions=lambda **k: torch.tensor([rewards[at] for at in ORDER]))
    loss = trainer.training_step(types.SimpleNamespace(train=lambda: None), {"prompt": [""] * PROMPTS})
    names = ("objective/scores objective/scores_margin logps/chosen logps/rejected rewards/chosen rewards/rejected "
             "rewards/accuracies rewards/margins")
    gradient = policy.grad[torch.tensor(ORDER).argsort()]
    for row, length in zip(gradient, LENGTHS):
        assert (row[:length] - row[0]).abs().max() < 1e-15 and not row[length:].any(), row
    return loss, gradient[:, 0].tolist(), [trainer.stats[name][-1] for name in names.split()]


def flat(x):
    return [x[i][t] for i, length in enumerate(LENGTHS) for t in range(length)]


def rust(numbers):
    return "&[" + ", ".join(repr(float(x)) for x in numbers) + "]"


def main():
    print(f"//! Numbers of TRL {trl.__version__}, written by `trl_online_dpo.py`.")
    print("/// Response lengths, two neighbours to each prompt.")
    print(f"pub(crate) const LENGTHS: [usize; {len(LENGTHS)}] = {LENGTHS};")
    print(f"/// Whether each has an end token.\npub(crate) const ENDED: [bool; {len(ENDED)}] = {str(ENDED).lower()};")
    print("/// Loss type, case, beta, penalty of a missing end token; loss, its derivative by a token of each response,")
    print("/// metrics: mean score, margin of scores, log-probs, rewards, accuracy, margin.")
    print("pub(crate) type Golden = (&'static str, usize, f64, Option<f64>, f64, &'static [f64], &'static [f64]);")
    print("/// Log-probs under policy and reference, and rewards.")
    print("pub(crate) const INPUTS: [[&[f64]; 3]; 3] = [")
    for seed in range(3):
        policy, reference, rewards = case(seed)
        print("    [" + ",\n     ".join([rust(flat(policy)), rust(flat(reference)), rust(rewards)]) + "],")
    print("];\n/// Steps of `OnlineDPOTrainer`.\npub(crate) const STEPS: &[Golden] = &[")
    for seed in range(3):
        for loss_type in ("sigmoid", "ipo"):
            for beta, penalty in ((0.1, None), (0.8, 1.5)):
                loss, gradient, metrics = step(seed, loss_type, beta, penalty)
                penalty = "None" if penalty is None else f"Some({penalty})"
                values = ", ".join((str(seed), repr(beta), penalty, repr(float(loss)), rust(gradient), rust(metrics)))
                print(f'    ("{loss_type}", {values}),')
    print("];")


if __name__ == "__main__":
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main()
    for line in text.getvalue().splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        print(textwrap.fill(line, 120, subsequent_indent=indent + " ", break_long_words=False, break_on_hyphens=False))
