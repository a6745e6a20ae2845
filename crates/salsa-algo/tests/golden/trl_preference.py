"""Golden numbers of preference losses from TRL's own code: python trl_preference.py > trl_preference.rs (TRL 1.16.0).

`_compute_loss` of `DPOTrainer` and `KTOTrainer` run on given log-probs in f64, with the models replaced by functions
that return them. `get_batch_loss_metrics` of `ORPOTrainer` and `CPOTrainer` run with a model of two tokens, whose
logits are `ln p` and `ln (1 - p)`. Gradients by autograd; TRL's casts to f32 are made to do nothing.
"""
import collections
import contextlib
import io
import random
import textwrap
import types

import torch
import trl
from trl.experimental.cpo.cpo_trainer import CPOTrainer
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer import dpo_trainer, kto_trainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer

assert trl.__version__ == "1.16.0", trl.__version__
torch.set_default_dtype(torch.float64)
torch.Tensor.float = lambda self: self.double()
for module in (dpo_trainer, kto_trainer):
    module.disable_gradient_checkpointing = lambda *a: contextlib.nullcontext()
    module.is_peft_model = lambda model: False
PROMPT = 2
LENGTHS = [3, 1, 5, 2, 4, 1]  # three chosen responses, three rejected ones; for KTO six responses
LABELS = [True, True, False, True, False, False]
LONGEST = max(LENGTHS)
MASK = torch.tensor([[int(t < length) for t in range(LONGEST)] for length in LENGTHS])


class Accelerator:
    device = torch.device("cpu")

    def gather(self, x):
        return x

    def gather_for_metrics(self, x):
        return x

    def unwrap_model(self, x):
        return x


def case(seed):
    """Log-probs of the responses under policy and reference, and of mismatched responses under both."""
    dice = random.Random(seed)
    draw = lambda low, high: torch.tensor([[dice.uniform(low, high) for _ in range(LONGEST)] for _ in LENGTHS])
    policy, other = draw(-2.0, -0.05), draw(-2.0, -0.05)
    return policy, policy + draw(-0.5, 0.5), other, other + (draw(-0.5, 0.1) if seed else draw(-0.1, 0.5))


def forward(logprobs):
    """What TRL's fused head returns for prompts and responses of these log-probs."""
    full = torch.cat([torch.zeros(len(LENGTHS), PROMPT - 1), logprobs * MASK], 1)
    zero = torch.zeros_like(full)
    return types.SimpleNamespace(log_probs=full, entropy=zero, mean_logits=zero, is_top1=zero.bool())


def stub(cls, **settings):
    trainer = cls.__new__(cls)
    trainer.__dict__.update(
        accelerator=Accelerator(), model=types.SimpleNamespace(training=True), aux_loss_enabled=False,
        _metrics={"train": collections.defaultdict(list)}, precompute_ref_logps=False, _total_train_tokens=0,
        _tp_size=1, args=types.SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        is_encoder_decoder=False)
    trainer.__dict__.update(settings)
    return trainer


def sequences(marker=0):
    mask = torch.cat([torch.zeros(len(LENGTHS), PROMPT, dtype=MASK.dtype), MASK], 1)
    return torch.full_like(mask, marker), mask


def dpo(seed, loss_type, beta, smoothing):
    policy, reference = (x.clone() for x in case(seed)[:2])
    policy.requires_grad_()
    ids, mask = sequences()
    trainer = stub(DPOTrainer, loss_types=[loss_type], loss_weights=[1.0], beta=beta, label_smoothing=smoothing,
                   ld_alpha=None, f_divergence_type="reverse_kl", use_weighting=False,
                   ref_model=lambda **k: forward(reference))
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=mask)
    loss = trainer._compute_loss(lambda **k: forward(policy), inputs, False)
    loss.backward()
    names = "rewards/chosen rewards/rejected rewards/accuracies rewards/margins"
    return loss, per_response(policy.grad), logged(trainer, names)


def kto(seed, loss_type, weights):
    policy, reference, other, ref_other = (x.clone() for x in case(seed))
    policy.requires_grad_()
    model = lambda a, b: lambda input_ids, **k: forward(b if input_ids[0, 0] else a)
    ids, mask = sequences()
    other_ids, _ = sequences(1)
    trainer = stub(KTOTrainer, loss_type=loss_type, calculate_KL=loss_type == "kto", beta=0.3,
                   desirable_weight=weights[0], undesirable_weight=weights[1], ref_model=model(reference, ref_other))
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), completion_mask=mask, KL_input_ids=other_ids,
                  KL_attention_mask=torch.ones_like(ids), KL_completion_mask=mask, label=torch.tensor(LABELS))
    loss = trainer._compute_loss(model(policy, other), inputs, False)
    loss.backward()
    return loss, per_response(policy.grad), logged(trainer, "rewards/chosen rewards/rejected rewards/margins kl")


def without_reference(cls, seed, **settings):
    """Gradients by the log-probs of the responses, and by one token of the first chosen response's prompt."""
    policy = case(seed)[0].clone().requires_grad_()
    prompts = torch.full((len(LENGTHS), PROMPT - 1), -0.7, requires_grad=True)
    ids, mask = sequences()
    attention = torch.cat([torch.ones(len(LENGTHS), PROMPT, dtype=MASK.dtype), MASK], 1)
    labels = torch.where(mask == 1, ids, -100)

    def model(input_ids, attention_mask, use_cache):
        logprobs = torch.cat([prompts, policy, torch.full((len(LENGTHS), 1), -1.0)], 1)
        return types.SimpleNamespace(logits=torch.stack([logprobs, torch.log(-torch.expm1(logprobs))], -1))

    batch = {f"{side}_{name}": x[rows] for side, rows in (("chosen", slice(0, 3)), ("rejected", slice(3, 6)))
             for name, x in (("input_ids", ids), ("attention_mask", attention), ("labels", labels))}
    trainer = stub(cls, padding_value=0, pad_token_id=0, **settings)
    loss, metrics = trainer.get_batch_loss_metrics(model, batch)
    loss.backward()
    names = "rewards/chosen rewards/rejected rewards/accuracies rewards/margins nll_loss log_odds_ratio log_odds_chosen"
    gradient = per_response(policy.grad) + [float(prompts.grad[0, 0]) if prompts.grad is not None else 0.0]
    return loss, gradient, [metrics[name] for name in names.split() if name in metrics]


def per_response(gradient):
    """The gradient by each token, which is the same for all tokens of a response."""
    for row, length in zip(gradient, LENGTHS):
        assert (row[:length] - row[0]).abs().max() < 1e-15 and not row[length:].any(), row
    return gradient[:, 0].tolist()


def logged(trainer, names):
    return [trainer._metrics["train"][name][-1] for name in names.split()]


def flat(x):
    return [float(x[i][t]) for i, length in enumerate(LENGTHS) for t in range(length)]


def rust(numbers):
    return "&[" + ", ".join(repr(float(x)) for x in numbers) + "]"


def golden(name, seed, parameters, result):
    loss, gradient, metrics = result
    values = ", ".join((str(seed), rust(parameters), repr(float(loss.detach())), rust(gradient), rust(metrics)))
    print(f'    ("{name}", {values}),')


def table(name, doc):
    print(f"];\n/// {doc}\npub(crate) const {name}: &[Golden] = &[")


def main():
    print(f"//! Numbers of TRL {trl.__version__}, written by `trl_preference.py`.")
    print(f"/// Response lengths: chosen, then rejected.\npub(crate) const LENGTHS: [usize; 6] = {LENGTHS};")
    print(f"/// Labels of the same responses for KTO.\npub(crate) const LABELS: [bool; 6] = {str(LABELS).lower()};")
    print("/// Loss type, case, parameters; loss, its derivative by a token of each response, metrics.")
    print("pub(crate) type Golden = (&'static str, usize, &'static [f64], f64, &'static [f64], &'static [f64]);")
    print("/// Log-probs under policy and reference, those of mismatched responses under both.")
    print("pub(crate) const INPUTS: [[&[f64]; 4]; 3] = [")
    for seed in range(3):
        print("    [" + ",\n     ".join(rust(flat(x)) for x in case(seed)) + "],")
    table("DPO", "Parameters: beta, label smoothing. Metrics: rewards of chosen and rejected, accuracies, margins.")
    for seed in range(3):
        for loss_type in ("sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard apo_zero apo_down discopop "
                          "sigmoid_norm").split():
            for beta, smoothing in ((0.1, 0.2), (0.8, 0.1)):
                golden(loss_type, seed, (beta, smoothing), dpo(seed, loss_type, beta, smoothing))
    table("KTO", "Parameters: weights of desirable and undesirable. Metrics: rewards of chosen, rejected; margin, KL.")
    for seed in range(3):
        for loss_type in ("kto", "apo_zero_unpaired"):
            for weights in ((1.0, 1.0), (0.7, 1.3)):
                golden(loss_type, seed, weights, kto(seed, loss_type, weights))
    table("ORPO", "Parameter: beta. Last derivative: by a prompt token. Metrics: as DPO; NLL, log odds ratio and odds.")
    for seed in range(3):
        for beta in (0.1, 1.0):
            golden("orpo", seed, (beta,), without_reference(ORPOTrainer, seed, beta=beta))
    table("CPO", "Parameters: beta, label smoothing, gamma, alpha. Derivatives as ORPO. Metrics: as DPO, and NLL.")
    for seed in range(3):
        for loss_type in ("sigmoid", "hinge", "ipo", "simpo"):
            for beta, smoothing, gamma, alpha in ((0.1, 0.0, 0.5, 1.0), (2.0, 0.2, 1.0, 0.0)):
                settings = dict(loss_type=loss_type, beta=beta, label_smoothing=smoothing, simpo_gamma=gamma,
                                cpo_alpha=alpha, alpha=0.0)
                result = without_reference(CPOTrainer, seed, **settings)
                golden(loss_type, seed, (beta, smoothing, gamma, alpha), result)
    print("];")


if __name__ == "__main__":
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main()
    for line in text.getvalue().splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        print(textwrap.fill(line, 120, subsequent_indent=indent + " ", break_long_words=False, break_on_hyphens=False))
