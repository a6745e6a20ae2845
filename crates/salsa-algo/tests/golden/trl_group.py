"""Golden numbers of group methods from TRL's own code: python trl_group.py > trl_group.rs (TRL 1.16.0).

`GRPOTrainer._compute_loss` and `RLOOTrainer._compute_loss` run on given log-probs in f64, with the forward pass replaced
by a function that returns them; gradients by autograd. The advantages run the trainers' own lines.
"""
import contextlib
import inspect
import io
import random
import textwrap
import types

import torch
import trl
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer
from trl.trainer.utils import nanstd

assert trl.__version__ == "1.16.0", trl.__version__
torch.set_default_dtype(torch.float64)
LENGTHS = [3, 1, 6, 4]
LONGEST = 6


class Accelerator:
    num_processes = 1
    process_index = 0
    is_main_process = True

    def gather(self, x):
        return x

    def gather_for_metrics(self, x):
        return x

    def reduce(self, x, reduction="sum"):
        return x


def case(seed):
    dice = random.Random(seed)
    draw = lambda spread: [[dice.uniform(-spread, spread) for _ in range(LONGEST)] for _ in LENGTHS]
    old = torch.tensor(draw(1.0)) - 1.5
    new, ref = old + torch.tensor(draw(0.6)), old + torch.tensor(draw(0.6))
    mask = torch.tensor([[int(t < length) for t in range(LONGEST)] for length in LENGTHS])
    rewards = torch.tensor([round(dice.uniform(-2, 2), 3) for _ in LENGTHS])
    if seed == 3:
        rewards[:] = 0.5  # a batch of equal rewards
    return old, new, ref, mask, rewards


def stub(cls, new, **settings):
    trainer = cls.__new__(cls)
    trainer.__dict__.update(
        accelerator=Accelerator(), model=types.SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        _metrics={"train": __import__("collections").defaultdict(list)}, aux_loss_enabled=False, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, use_vllm=False, max_completion_length=LONGEST, entropy_coef=0.0,
        _entropy_bonus_enabled=False, use_liger_kernel=False)
    trainer.args = types.SimpleNamespace(
        delta=settings.pop("delta", None), use_bias_correction_kl=False, steps_per_generation=1, entropy_coef=0.0)
    trainer.__dict__.update(settings)
    zero = torch.zeros_like(new)
    trainer._get_per_token_logps_and_entropies = lambda *a, **k: (new, zero, None)
    return trainer


def inputs(old, ref, mask, advantages):
    ids = torch.zeros_like(mask)
    return dict(prompt_ids=ids[:, :1], prompt_mask=torch.ones_like(ids[:, :1]), completion_ids=ids, completion_mask=mask,
                advantages=advantages, old_per_token_logps=old, ref_per_token_logps=ref,
                old_logps=(old * mask).sum(1), num_items_in_batch=mask.sum())


def grpo_advantages(rewards, scale):
    """The lines of `_generate_and_score_completions` between the sum of rewards and the advantages."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    start = source.index("mean_grouped_rewards = torch.nanmean(rewards.view(-1, num_generations), dim=1)")
    start = source.rindex("\n", 0, start) + 1
    end = source.index("is_std_zero", start)
    end = source.rindex("\n", 0, end) + 1
    scope = dict(torch=torch, nanstd=nanstd, rewards=rewards, num_generations=4,
                 self=types.SimpleNamespace(scale_rewards=scale))
    exec(textwrap.dedent(source[start:end]), scope)
    return scope["advantages"]


def rloo_advantages(rewards, normalize):
    source = inspect.getsource(RLOOTrainer._generate_and_score_completions)
    start = source.index("scorable_counts = ")
    start = source.rindex("\n", 0, start) + 1
    end = source.index("advantages = torch.nan_to_num", start)
    end = source.rindex("\n", 0, end) + 1
    scope = dict(torch=torch, nanstd=nanstd, rewards=rewards, grouped_rewards=rewards.view(-1, 4), num_generations=4,
                 self=types.SimpleNamespace(normalize_advantages=normalize))
    exec(textwrap.dedent(source[start:end]), scope)
    return scope["advantages"]


def flat(x, mask):
    return [float(x[i][t]) for i, length in enumerate(LENGTHS) for t in range(length)]


def rust(numbers):
    return "&[" + ", ".join(repr(float(x)) for x in numbers) + "]"


FIELDS = (("case", "usize"), ("method", "&'static str"), ("level", "&'static str"), ("beta", "f64"),
          ("limit", "Option<f64>"), ("loss", "f64"), ("gradient", "&'static [f64]"))


def golden(case, method, level, beta, limit, loss, gradient):
    values = (case, f'"{method}"', f'"{level}"', beta, limit, float(loss.detach()), rust(gradient))
    return "    Golden { " + ", ".join(f"{name}: {value}" for (name, _), value in zip(FIELDS, values)) + " },"


def main():
    print(f"//! Numbers of TRL {trl.__version__}, written by `trl_group.py`.")
    print("/// Responses of these lengths, one group.\npub(crate) const LENGTHS: [usize; 4] = [3, 1, 6, 4];")
    print("/// Old, new and reference log-probs, rewards.\npub(crate) const INPUTS: [[&[f64]; 4]; 4] = [")
    for seed in range(4):
        old, new, ref, mask, rewards = case(seed)
        print("    [" + ",\n     ".join(map(rust, (flat(old, mask), flat(new, mask), flat(ref, mask), rewards))) + "],")
    print("];\n/// A loss of TRL's, and its derivative by each log-prob.\npub(crate) struct Golden {")
    for field, kind in FIELDS:
        print(f"    pub(crate) {field}: {kind},")
    print("}\npub(crate) const LOSSES: &[Golden] = &[")
    for seed in range(4):
        old, new, ref, mask, rewards = case(seed)
        advantages = grpo_advantages(rewards, "group")
        for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo"):
            for level in ("token", "sequence"):
                for beta, delta in ((0.0, None), (0.3, 1.4)):
                    x = new.clone().requires_grad_()
                    trainer = stub(GRPOTrainer, x, loss_type=loss_type, importance_sampling_level=level, beta=beta,
                                   epsilon_low=0.1, epsilon_high=0.2, delta=delta)
                    loss = trainer._compute_loss(None, inputs(old, ref, mask, advantages))
                    loss.backward()
                    limit = "None" if delta is None else f"Some({delta!r})"
                    print(golden(seed, loss_type, level, beta, limit, loss, flat(x.grad, mask)))
        x = new.clone().requires_grad_()
        trainer = stub(RLOOTrainer, x, epsilon_low=0.1, epsilon_high=0.2)
        loss = trainer._compute_loss(None, inputs(old, ref, mask, rloo_advantages(rewards, False)))
        loss.backward()
        print(golden(seed, "rloo", "product", 0.0, "None", loss, flat(x.grad, mask)))
    print("];\n/// Case, method, scale, advantages.\npub(crate) const ADVANTAGES: &[(usize, &str, &str, &[f64])] = &[")
    for seed in range(4):
        rewards = case(seed)[4]
        for scale in ("group", "batch", "none"):
            print(f'    ({seed}, "grpo", "{scale}", {rust(grpo_advantages(rewards, scale))}),')
        print(f'    ({seed}, "rloo", "none", {rust(rloo_advantages(rewards, False))}),')
    print("];")


if __name__ == "__main__":
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main()
    for line in text.getvalue().splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        print(textwrap.fill(line, 120, subsequent_indent=indent + " ", break_long_words=False, break_on_hyphens=False))
