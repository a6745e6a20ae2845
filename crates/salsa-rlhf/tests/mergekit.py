"""Hold `salsa soup --config` against mergekit on random checkpoints, method by method.

    python mergekit.py --salsa BIN        # in an environment with mergekit 0.1.5, torch and transformers

Everything but `linear` and `slerp` must be equal, element by element. These two may differ in the last bit of float32,
since mergekit fuses multiplication and addition: at most 5e-8 on weights of about 0.02. DARE drops at random, each
program by its own dice, so it is compared at density 1.
"""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM


def models(extra="", first=0.3, second=0.7):
    entry = "- model: {}\n  parameters: {{weight: {}{}}}\n"
    return "models:\n" + entry.format("A", first, extra) + entry.format("B", second, extra)


TASK = "merge_method: {}\nbase_model: BASE\n"
CASES = {  # name: (YAML, tolerance)
    "linear, halves": (models("", 0.5, 0.5) + "merge_method: linear\n", 0.0),
    "linear": (models() + "merge_method: linear\n", 5e-8),
    "linear, not normalised": (models("", 0.3, 1.1) + "merge_method: linear\nparameters: {normalize: false}\n", 5e-8),
    "slerp": ("models: [{model: A}, {model: B}]\nmerge_method: slerp\nbase_model: B\nparameters: {t: 0.3}\n", 5e-8),
    "task_arithmetic": (models() + TASK.format("task_arithmetic") + "parameters: {lambda: 0.9}\n", 0.0),
    "ties": (models(", density: 0.4") + TASK.format("ties"), 0.0),
    "ties, not normalised": (
        models(", density: 0.4") + TASK.format("ties") + "parameters: {normalize: false, lambda: 1.5}\n", 0.0),
    "dare_linear, density 1": (models(", density: 1.0") + TASK.format("dare_linear"), 0.0),
    "dare_ties, density 1": (models(", density: 1.0") + TASK.format("dare_ties"), 0.0),
}


def make(path, seed, near=None):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, tie_word_embeddings=False, architectures=["LlamaForCausalLM"], dtype="float32")
    config.save_pretrained(path)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in LlamaForCausalLM(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    draw = lambda k, s: torch.randn(s, generator=generator) * 0.02 + (near[k] if near else 0)
    tensors = {k: draw(k, s) for k, s in shapes.items()}
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return tensors


def load(path):
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def compare(salsa, folder, yaml):
    config = folder / "merge.yml"
    place = {"BASE": "base", "A": "a", "B": "b"}
    config.write_text(re.sub(r": (BASE|A|B)\b", lambda m: f": {folder / place[m[1]]}", yaml) + "dtype: float32\n")
    for name in ("theirs", "ours"):
        shutil.rmtree(folder / name, ignore_errors=True)
    mergekit = str(Path(sys.executable).parent / "mergekit-yaml")
    subprocess.run([mergekit, str(config), str(folder / "theirs"), "--quiet"], check=True, capture_output=True)
    command = [salsa, "soup", "--config", str(config), "--output", str(folder / "ours")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    theirs, ours = load(folder / "theirs"), load(folder / "ours")
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    LlamaForCausalLM.from_pretrained(folder / "ours")
    return max((theirs[k] - ours[k]).abs().max().item() for k in ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--salsa", required=True, metavar="BIN")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    worst = dict.fromkeys(CASES, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for seed in range(args.seeds):
            for name in ("base", "a", "b"):
                (folder / name).mkdir(exist_ok=True)
            base = make(folder / "base", 10 * seed)
            make(folder / "a", 10 * seed + 1, base)
            make(folder / "b", 10 * seed + 2, base)
            for case, (yaml, _) in CASES.items():
                worst[case] = max(worst[case], compare(args.salsa, folder, yaml))
    for case, (_, tolerance) in CASES.items():
        print(f"{case:26} largest difference {worst[case]:.1e}, allowed {tolerance:.0e}")
    sys.exit(any(worst[case] > tolerance for case, (_, tolerance) in CASES.items()))


if __name__ == "__main__":
    main()
