"""Hold `salsa soup --config` against mergekit on random checkpoints, method by method, filters and gradients included.

    python mergekit.py --salsa BIN [--seeds N]        # in an environment with mergekit 0.1.5, torch and transformers

Tolerances are absolute, in float32, on weights of about 0.02 (largest about 0.1), and stand beside each case:

* 0: equal, element by element: `linear`, and all task-vector methods of two models.
* 1.5e-8: the last bit of float32 between 0.125 and 0.25. mergekit's `slerp` sums angles in float32, here they are summed in float64. Of
  three task vectors torch may add in another order, and so it may the weights of five and more models by whose sum `linear`
  divides; there the order depends on the processor, here it does not.

Of TIES, entries of equal magnitude at the threshold would be kept by either program as it likes; random numbers have none.
DARE drops at random, each program by its own dice, and mergekit rescales to the old sum of magnitudes instead of dividing
by the density, so it is compared at density 1 here, and with dice only in its expectation: `dice` below.
"""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.pop(0)  # this folder, where this file would be taken for the package of its name

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from yaml import safe_load as yaml_load

OPTIONS = MergeOptions(quiet=True, copy_tokenizer=False)


LAST_BIT = 1.5e-8


def models(extra="", weights=(0.3, 0.7)):
    entry = "- model: {}\n  parameters: {{weight: {}{}}}\n"
    return "models:\n" + "".join(entry.format(name, w, extra) for name, w in zip("ABCDEFGH", weights))


def task(method, extra="", parameters=None, weights=(0.3, 0.7)):
    shared = f"parameters: {{{parameters}}}\n" if parameters else ""
    return models(extra, weights) + f"merge_method: {method}\nbase_model: BASE\n" + shared


def slerp(t):
    return "models: [{model: A}, {model: B}]\nmerge_method: slerp\nbase_model: B\nparameters: {t: " + t + "}\n"


FILTERS = "[{filter: self_attn, value: 0.2}, {filter: mlp, value: 0.9}, {value: 0.5}]"
GRADIENT = "[0, 0.5, 0.3, 0.7, 1]"
BOTH = "[{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, {value: 0.5}]"
README = """slices:
- sources: [{model: A, layer_range: [0, 3]}, {model: B, layer_range: [0, 3]}]
merge_method: slerp
base_model: A
parameters: {t: %s}
""" % BOTH
CASES = {  # name: (YAML, tolerance)
    "linear, halves": (models("", (0.5, 0.5)) + "merge_method: linear\n", 0.0),
    "linear, quarters": (models("", (0.25, 0.75)) + "merge_method: linear\n", 0.0),
    "linear": (models() + "merge_method: linear\n", 0.0),
    "linear, extrapolated": (models("", (1.3, -0.4)) + "merge_method: linear\n", 0.0),
    "linear of three": (models("", (0.3, 0.7, 0.2)) + "merge_method: linear\n", 0.0),
    "linear of three, equal": (models("", (1, 1, 1)) + "merge_method: linear\n", 0.0),
    "linear of four": (models("", (0.3, 0.7, 0.2, 0.17)) + "merge_method: linear\n", 0.0),
    "linear of five": (models("", (0.3, 0.7, 0.2, 0.17, 0.4)) + "merge_method: linear\n", LAST_BIT),
    "linear of eight, equal": (models("", (1,) * 8) + "merge_method: linear\n", 0.0),
    "linear, not normalised": (models("", (0.3, 1.1)) + "merge_method: linear\nparameters: {normalize: false}\n", 0.0),
    "linear, filters": (models("", (FILTERS, 0.7)) + "merge_method: linear\n", 0.0),
    "linear, gradient": (models("", (GRADIENT, "[1, 0.2]")) + "merge_method: linear\n", 0.0),
    "linear, own and common": (
        models("", ("[{filter: mlp, value: [0.1, 2]}]", 0.4)) + "merge_method: linear\nparameters: {weight: 0.6}\n", 0.0),
    "linear, base counts": (
        "models: [{model: A}]\nbase_model: B\nmerge_method: linear\nparameters: {weight: 1, int8_mask: true}\n", 0.0),
    "slerp": (slerp("0.3"), LAST_BIT),
    "slerp, gradient": (slerp(GRADIENT), LAST_BIT),
    "slerp, filters": (slerp(FILTERS), LAST_BIT),
    "slerp, README example": (README, LAST_BIT),
    "task_arithmetic": (task("task_arithmetic", "", "lambda: 0.9"), 0.0),
    "task_arithmetic of three": (task("task_arithmetic", weights=(0.3, 0.7, 0.2)), LAST_BIT),
    "task_arithmetic, filters": (task("task_arithmetic", "", "lambda: " + BOTH, (FILTERS, GRADIENT)), 0.0),
    "task_arithmetic, normalised": (task("task_arithmetic", "", "normalize: true"), 0.0),
    "ties": (task("ties", ", density: 0.4"), 0.0),
    "ties of three": (task("ties", ", density: 0.4", weights=(0.3, 0.7, 0.2)), LAST_BIT),
    "ties, not normalised": (task("ties", ", density: 0.4", "normalize: false, lambda: 1.5"), 0.0),
    "ties, density filters": (task("ties", ", density: " + BOTH), 0.0),
    "ties, own densities": (
        "models:\n- {model: A, parameters: {weight: 0.4, density: [0.2, 0.9]}}\n"
        "- {model: B, parameters: {weight: [{filter: mlp, value: 1.5}], density: 0.7}}\n"
        "merge_method: ties\nbase_model: BASE\nparameters: {weight: 0.8, density: 0.1, int8_mask: true}\n", 0.0),
    "dare_linear, density 1": (task("dare_linear", ", density: 1.0"), 0.0),
    "dare_linear, filters": (task("dare_linear", ", density: 1.0", "lambda: " + GRADIENT, (BOTH, 0.7)), 0.0),
    "dare_ties, density 1": (task("dare_ties", ", density: 1.0"), 0.0),
    "dare_ties, filters": (task("dare_ties", ", density: 1.0", "normalize: true", (BOTH, GRADIENT)), 0.0),
}


def make(path, seed, near=None):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
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


def merged(salsa, folder, yaml):
    config = folder / "merge.yml"
    place = {"BASE": "base"} | {name: name.lower() for name in "ABCDEFGH"}
    config.write_text(re.sub(r": (BASE|[A-H])\b", lambda m: f": {folder / place[m[1]]}", yaml) + "dtype: float32\n")
    for name in ("theirs", "ours"):
        shutil.rmtree(folder / name, ignore_errors=True)
    run_merge(MergeConfiguration.model_validate(yaml_load(config.read_text())), str(folder / "theirs"), OPTIONS)
    command = [salsa, "soup", "--config", str(config), "--output", str(folder / "ours")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    theirs, ours = load(folder / "theirs"), load(folder / "ours")
    assert theirs.keys() == ours.keys(), theirs.keys() ^ ours.keys()
    return theirs, ours


def compare(salsa, folder, yaml):
    theirs, ours = merged(salsa, folder, yaml)
    LlamaForCausalLM.from_pretrained(folder / "ours")
    return max((theirs[k] - ours[k]).abs().max().item() for k in ours)


def dice(salsa, folder, base):
    """With other dice, the same share of entries and the same mean task vector, in standard errors."""
    theirs, ours = merged(salsa, folder, task("dare_linear", ", density: 0.3", weights=(1.0,)))
    delta = load(folder / "a")
    worst = 0.0
    for k, tensor in ours.items():
        if tensor.numel() < 5000:
            continue
        share = ((tensor - base[k]).abs() > 1e-7).float().mean().item()
        worst = max(worst, abs(share - 0.3) / (0.21 / tensor.numel()) ** 0.5)
        kept = tensor - base[k] != 0
        rescaled = ((tensor - base[k])[kept] / (delta[k] - base[k])[kept]).median().item()
        assert abs(rescaled - 1 / 0.3) < 1e-3, rescaled
        other = (theirs[k] - base[k]).abs().sum() / (tensor - base[k]).abs().sum()
        assert abs(other.item() - 1) < 0.1, (k, other)
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--salsa", required=True, metavar="BIN")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    worst, errors = dict.fromkeys(CASES, 0.0), 0.0
    for seed in range(args.seeds):
        # A folder for each seed: mergekit keeps files open by their paths.
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            for name in ("base", *"abcdefgh"):
                (folder / name).mkdir()
            base = make(folder / "base", 10 * seed)
            for i, name in enumerate("abcdefgh", 1):
                make(folder / name, 10 * seed + i, base)
            for case, (yaml, _) in CASES.items():
                worst[case] = max(worst[case], compare(args.salsa, folder, yaml))
            errors = max(errors, dice(args.salsa, folder, base))
    for case, (_, tolerance) in CASES.items():
        print(f"{case:28} largest difference {worst[case]:.1e}, allowed {tolerance:.1e}")
    print(f"{'dare_linear, density 0.3':28} share of entries off by {errors:.1f} standard errors, allowed 5")
    sys.exit(errors > 5 or any(worst[case] > tolerance for case, (_, tolerance) in CASES.items()))


if __name__ == "__main__":
    main()
