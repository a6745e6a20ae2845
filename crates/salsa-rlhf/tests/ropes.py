"""Holds scaled rotary positions against transformers, in sequences shorter and longer than the trained context.

    python crates/salsa-rlhf/tests/ropes.py --salsa BIN      # in an environment with transformers (5.23 was used) and torch

For each kind of scaling a small random Llama is saved by transformers; `salsa logprobs` (float32) must give transformers'
log-probs in float64 within 2e-4, and `salsa generate` the tokens that the log-probs of transformers' forward pass over the
tokens so far choose. A model of transformers remembers the longest sequence it has seen where scaling is dynamic, so each
sequence gets a fresh one. Without transformers a line says so, and nothing is held.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.pop(0)
try:
    import torch
    import transformers
except ImportError as error:
    sys.exit(print(f"skipped: {error}"))

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TRAINED, TOLERANCE, NEW = 32, 2e-4, 12
HALF = 8
KINDS = {
    "linear": dict(factor=4.0),
    "dynamic": dict(factor=4.0),
    "llama3": dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=TRAINED),
    "yarn": dict(factor=4.0, original_max_position_embeddings=TRAINED),
    "yarn, betas": dict(factor=4.0, original_max_position_embeddings=TRAINED, beta_fast=4.0, beta_slow=0.5, truncate=False),
    "yarn, mscale": dict(factor=4.0, original_max_position_embeddings=TRAINED, mscale=2.0, mscale_all_dim=0.5),
    "yarn, attention": dict(factor=4.0, original_max_position_embeddings=TRAINED, attention_factor=0.8),
    "longrope": dict(
        short_factor=[1 + 0.1 * i for i in range(HALF)], long_factor=[2 + 0.7 * i for i in range(HALF)], factor=4.0,
        original_max_position_embeddings=TRAINED,
    ),
}


def save(path, kind, seed):
    rope = dict(rope_type=kind.split(",")[0], rope_theta=10000.0, **KINDS[kind])
    positions = TRAINED if kind in ("linear", "dynamic") else 4 * TRAINED
    config = transformers.LlamaConfig(
        vocab_size=131, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, rope_parameters=rope, bos_token_id=1, eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, (2 if "embed" in name or "lm_head" in name else 1.5) / weight.shape[-1] ** 0.5)
    model.save_pretrained(path)


@torch.no_grad()
def table(path, tokens):
    model = transformers.LlamaForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


def rows(salsa, command, model, lines, *more):
    given, made = model / "in.jsonl", model / "out.jsonl"
    given.write_text("".join(json.dumps({"tokens": line}) + "\n" for line in lines))
    made.unlink(missing_ok=True)
    words = [salsa, command, "--model", model, "--input", given, "--output", made, "--dtype", "f32", *more]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in made.read_text().splitlines()]


def check(salsa, path, kind, seed):
    save(path, kind, seed)
    draw = random.Random(seed)
    lengths = [2, TRAINED - 1, TRAINED, TRAINED + 1, 2 * TRAINED, 4 * TRAINED]
    sequences = [[draw.randrange(3, 131) for _ in range(length)] for length in lengths]
    worst = 0.0
    for tokens, row in zip(sequences, rows(salsa, "logprobs", path, sequences)):
        expected = table(path, tokens)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        worst = max(worst, (expected - torch.tensor(row["logprobs"])).abs().max().item())
    prompts = [tokens[: TRAINED - 5] for tokens in sequences[2:4]] + [sequences[4]]
    more = ("--max-new-tokens", NEW, "--temperature", "0")
    for prompt, row in zip(prompts, rows(salsa, "generate", path, prompts, *more)):
        for at in range(len(prompt), len(row["tokens"])):
            logprobs = table(path, row["tokens"][:at])[-1]
            worst = max(worst, (logprobs.max() - logprobs[row["tokens"][at]]).item())
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--salsa", required=True, metavar="BIN")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    failures = 0
    for kind in KINDS:
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                worst = check(arguments.salsa, pathlib.Path(folder), kind, seed)
            failures += worst > TOLERANCE
            print(f"{'ok    ' if worst <= TOLERANCE else 'FAILED'} {kind}, seed {seed}: {worst:.1e}", flush=True)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
