"""Hold PEFT directories against PEFT itself, both ways.

    ~/.cache/salsa-peers/bin/python crates/salsa-rlhf/tests/peft.py --salsa BIN
    # in an environment with peft (0.21.2 was used), torch and transformers

For each family a small random base:
- `salsa sft` and `salsa reward` train adapters; PEFT loads them and gives the log-probs of `salsa logprobs` and the scores of
  `salsa score`;
- adapters that PEFT made (ranks, rsLoRA, some or all targets, both task types, embedding layers or none) are read by
  Salsa, with the same numbers;
- `salsa soup` of two adapters loads in PEFT and gives the same numbers there, and those of the mean of the merged weights;
- `salsa merge` gives the numbers of `merge_and_unload`.
The tolerance, 2e-5, is float32 rounding of two programs that sum in different orders, on log-probs of about 5.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.pop(0)  # this file has the name of the package
os.environ.setdefault("TQDM_DISABLE", "1")

import peft
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (AutoModelForCausalLM, AutoModelForSequenceClassification, GemmaConfig, LlamaConfig,
                          MistralConfig, Qwen2Config, Qwen3Config)

TOLERANCE = 2e-5
SHAPE = dict(vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
             initializer_range=0.1)
FAMILIES = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=8),
    "gemma": lambda: GemmaConfig(**SHAPE, head_dim=16),
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Check:
    """Counts comparisons and remembers what was too far apart."""

    def __init__(self, salsa, where):
        self.salsa, self.where, self.count, self.worst, self.failed = salsa, where, 0, 0.0, []

    def run(self, *words):
        done = subprocess.run([self.salsa, *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"salsa {' '.join(map(str, words))}: {done.stderr}")

    def near(self, what, ours, theirs):
        if not ours or len(ours) != len(theirs):
            sys.exit(f"{what}: {len(ours)} numbers against {len(theirs)}")
        error = max(abs(a - b) for a, b in zip(ours, theirs))
        self.count, self.worst = self.count + 1, max(self.worst, error)
        if not error < TOLERANCE:
            self.failed.append(f"{what}: {error:.2e}")
        print(f"  {what:<58} {error:.1e}")

    def ours(self, command, model, key):
        lines = self.where / "sequences.jsonl"
        out = self.where / f"{command}.jsonl"
        self.run(command, "--model", model, "--input", lines, "--output", out)
        rows = [json.loads(line)[key] for line in out.read_text().splitlines()]
        return [x for row in rows for x in row] if key == "logprobs" else rows


def sequences():
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 64, (n,), generator=generator).tolist() for n in (5, 17, 30)]


@torch.no_grad()
def logprobs(model):
    numbers = []
    for tokens in sequences():
        logits = model(torch.tensor([tokens])).logits[0, :-1].double()
        numbers += logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
    return numbers


@torch.no_grad()
def scores(model):
    return [model(torch.tensor([tokens])).logits[0, 0].item() for tokens in sequences()]


def base_model(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def classifier(directory):
    torch.manual_seed(0)  # the new head is drawn at random, then replaced by the adapter's
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32).eval()
    model.config.pad_token_id = 0
    return model


def make_base(check, family):
    directory = check.where / "base"
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    for parameter in model.parameters():  # norms and biases too, so that each matters
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 64)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return directory


def write_data(check):
    def text(i, n):
        return " ".join(f"w{3 + (7 * i + 5 * j) % 61}" for j in range(n))
    sft = [{"prompt": text(i, 4), "completion": text(i + 1, 6)} for i in range(24)]
    pairs = [{"prompt": text(i, 4), "chosen": text(i, 5), "rejected": text(i + 3, 7)} for i in range(24)]
    for name, rows in (("sft", sft), ("pairs", pairs), ("sequences", [{"tokens": t} for t in sequences()])):
        (check.where / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def ours_in_peft(check, base, family):
    for name, seed, extra in (("a", 1, ["--lora_r", 4]), ("b", 2, ["--lora_r", 6, "--use_rslora", "true",
                                                                    "--lora_target_modules", "q_proj", "down_proj"])):
        check.run("sft", "--model", base, "--dataset", check.where / "sft.jsonl", "--output_dir", check.where / name,
                  "--use_peft", "true", "--learning_rate", 0.01, "--max_steps", 8, "--seed", seed, *extra)
        theirs = peft.PeftModel.from_pretrained(base_model(base), check.where / name)
        check.near(f"{family}: sft adapter {name} in PEFT", check.ours("logprobs", check.where / name, "logprobs"),
                   logprobs(theirs))
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(check.where / "a")  # finds the base by itself
    check.near(f"{family}: by its own base path", check.ours("logprobs", check.where / "a", "logprobs"), logprobs(auto))
    check.run("reward", "--model", check.where / "a", "--dataset", check.where / "pairs.jsonl", "--output_dir",
              check.where / "reward", "--use_peft", "true", "--learning_rate", 0.01, "--max_steps", 8)
    theirs = peft.PeftModel.from_pretrained(classifier(base), check.where / "reward")
    mean, std = (json.loads((check.where / "reward/score_normalization.json").read_text())[key]
                 for key in ("score_mean", "score_std"))
    raw = scores(theirs)
    check.near(f"{family}: reward adapter in PEFT", check.ours("score", check.where / "reward", "score"), raw)
    check.near(f"{family}: its normalised scores", check.ours("score", check.where / "reward", "score_normalized"),
               [(score - mean) / std for score in raw])


def theirs_in_ours(check, base, family):
    cases = [("all", dict(r=5, lora_alpha=7, target_modules="all-linear")),
             ("some", dict(r=2, lora_alpha=3, target_modules=["v_proj", "up_proj"], use_rslora=True)),
             ("pattern", dict(r=3, lora_alpha=8, target_modules=r".*(self_attn\.o_proj|mlp\.down_proj)"))]
    for name, options in cases:
        for task, load, command, key in (("CAUSAL_LM", base_model, "logprobs", "logprobs"),
                                         ("SEQ_CLS", classifier, "score", "score")):
            model = peft.get_peft_model(load(base), peft.LoraConfig(task_type=task, **options)).eval()
            torch.manual_seed(9)
            for key_, parameter in model.named_parameters():
                if "lora_" in key_ or "modules_to_save" in key_:
                    parameter.data = 0.2 * torch.randn_like(parameter)
            directory = check.where / f"theirs-{name}-{task}"
            # As PEFT does by itself where the vocabulary was resized or the base is not to be reached.
            model.save_pretrained(directory, save_embedding_layers=name == "some")
            measure = logprobs if key == "logprobs" else scores
            check.near(f"{family}: PEFT's {name}, {task}", check.ours(command, directory, key), measure(model))
    merged = check.where / "merged"
    directory = check.where / "theirs-all-CAUSAL_LM"
    check.run("merge", directory, "--output", merged)
    expected = logprobs(peft.PeftModel.from_pretrained(base_model(base), directory).merge_and_unload())
    check.near(f"{family}: merge", logprobs(base_model(merged)), expected)
    check.near(f"{family}: merge, read by us", check.ours("logprobs", merged, "logprobs"), expected)


def soups(check, base, family):
    soup = check.where / "soup"
    check.run("soup", check.where / "a", check.where / "b", "--weights", 0.3, 0.7, "--output", soup)
    ours = check.ours("logprobs", soup, "logprobs")
    check.near(f"{family}: soup of adapters in PEFT", ours,
               logprobs(peft.PeftModel.from_pretrained(base_model(base), soup)))
    whole = base_model(base)
    parts = [peft.PeftModel.from_pretrained(base_model(base), check.where / n).merge_and_unload().state_dict()
             for n in ("a", "b")]
    whole.load_state_dict({key: 0.3 * parts[0][key] + 0.7 * parts[1][key] for key in parts[0]})
    check.near(f"{family}: soup of the merged models", ours, logprobs(whole))
    small = check.where / "soup-svd"
    check.run("soup", check.where / "a", check.where / "b", "--svd_rank", 3, "--output", small)
    check.near(f"{family}: soup of rank 3 in PEFT", check.ours("logprobs", small, "logprobs"),
               logprobs(peft.PeftModel.from_pretrained(base_model(base), small)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--salsa", required=True, help="the program to check")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    failed, count, worst = [], 0, 0.0
    for family in arguments.families:
        print(family)
        with tempfile.TemporaryDirectory() as where:
            check = Check(str(Path(arguments.salsa).resolve()), Path(where))
            write_data(check)
            base = make_base(check, family)
            ours_in_peft(check, base, family)
            theirs_in_ours(check, base, family)
            soups(check, base, family)
        failed, count, worst = failed + check.failed, count + check.count, max(worst, check.worst)
    print(f"{count} comparisons, worst {worst:.1e}, peft {peft.__version__}")
    if failed or count == 0 or math.isnan(worst):
        sys.exit("too far apart: " + "; ".join(failed))


if __name__ == "__main__":
    main()
