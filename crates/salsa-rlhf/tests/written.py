"""Holds every model that a run has written against transformers and PEFT.

    ~/.cache/salsa-peers/bin/python crates/salsa-rlhf/tests/written.py RUN --salsa BIN
    # RUN: what `salsa quickstart` or `salsa run` left; in an environment with transformers (5.23 was used), peft and torch

Every directory below RUN with a config.json or an adapter_config.json is loaded by transformers (with PEFT if it is an adapter)
from the files alone, and gives the log-probs of `salsa logprobs`, or the scores of `salsa score`, on the same random tokens
(scores also with an end token behind them), and its tokenizer the tokens of `salsa logprobs` for a text, less the end token. The tolerance, 1e-4, is float32 rounding of two programs that sum in
different orders, on log-probs of about 5.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

sys.path.pop(0)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
TOLERANCE = 1e-4
TEXT = "A dip with garlic, please. Ünïcode too — 3 times!"


def rows(salsa, command, model, lines):
    with tempfile.TemporaryDirectory() as folder:
        given, made = pathlib.Path(folder, "in.jsonl"), pathlib.Path(folder, "out.jsonl")
        given.write_text("".join(json.dumps(line) + "\n" for line in lines))
        words = [salsa, command, "--model", model, "--input", given, "--output", made, "--dtype", "f32"]
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
        return [json.loads(line) for line in made.read_text().splitlines()]


def load(path):
    adapter = path / "adapter_config.json"
    config = json.loads(adapter.read_text()) if adapter.exists() else json.loads((path / "config.json").read_text())
    scores = config["task_type"] == "SEQ_CLS" if adapter.exists() else "SequenceClass" in config["architectures"][0]
    kind = transformers.AutoModelForSequenceClassification if scores else transformers.AutoModelForCausalLM
    if not adapter.exists():
        return kind.from_pretrained(path, dtype=torch.float32).eval(), scores
    more = {"num_labels": 1} if scores else {}
    base = kind.from_pretrained(config["base_model_name_or_path"], dtype=torch.float32, **more)
    return peft.PeftModel.from_pretrained(base, path).eval(), scores


def difference(salsa, path):
    model, scores = load(path)
    vocabulary = model.config.vocab_size
    sequences = [[random.randrange(3, vocabulary) for _ in range(length)] for length in (2, 9, 40)]
    if scores:
        # transformers reads a score at the last token that is no padding: the end token must not be taken for that.
        ends = model.config.eos_token_id
        sequences += [tokens + [end] for tokens in sequences for end in (ends if isinstance(ends, list) else [ends])]
    found = rows(salsa, "score" if scores else "logprobs", path, [{"tokens": tokens} for tokens in sequences])
    worst = 0.0
    with torch.no_grad():
        for tokens, row in zip(sequences, found):
            logits = model(torch.tensor([tokens])).logits[0]
            if scores:
                worst = max(worst, abs(row["score"] - logits[0].item()))
                continue
            expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
            worst = max(worst, (expected - torch.tensor(row["logprobs"])).abs().max().item())
    if not scores:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        text = rows(salsa, "logprobs", path, [{"text": TEXT}])[0]["tokens"]
        # Salsa ends a text with the end token.
        assert tokenizer(TEXT).input_ids + [tokenizer.eos_token_id] == text, f"{path}: tokens differ"
    return worst, scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--salsa", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    random.seed(0)
    names = ["config.json", "adapter_config.json"]
    models = sorted({file.parent for name in names for file in arguments.run.rglob(name)})
    assert models, f"{arguments.run} holds no model"
    for path in models:
        worst, scores = difference(arguments.salsa.resolve(), path)
        print(f"{str(path):40} {'scores' if scores else 'log-probs'} differ by {worst:.1e}")
        assert worst < TOLERANCE, path
    print(f"{len(models)} models load and agree")


main()
