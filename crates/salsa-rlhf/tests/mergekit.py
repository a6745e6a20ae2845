"""Hold `salsa soup --config` against mergekit on random checkpoints, method by method, filters and gradients included.

    python mergekit.py --salsa BIN [--seeds N]        # in an environment with mergekit 0.1.5, torch and transformers

Tolerances are absolute, in float32, on weights of about 0.02 (largest about 0.1), and stand beside each case:

* 0: equal, element by element: `linear`, and all task-vector methods of two models.
* 1.5e-8: the last bit of float32 between 0.125 and 0.25. mergekit's `slerp`, `nuslerp`, `karcher` and `model_stock` sum angles in
  float32, here they are summed in float64, and adapters are merged by PEFT there, row by row here. Of
  three task vectors torch may add in another order, and so it may the weights of five and more models by whose sum `linear`
  divides; there the order depends on the processor, here it does not.
* 6e-8: four of these bits. mergekit's `karcher` takes its steps in float32 on tensors, here they are taken in float64 on their
  inner products; and its `nuslerp` divides in float32 by the sine of an angle that it found in float32.

Of TIES, entries of equal magnitude at the threshold would be kept by either program as it likes; random numbers have none.
DARE drops at random, each program by its own dice, and mergekit rescales to the old sum of magnitudes instead of dividing
by the density, so it is compared at density 1 here, and with dice only in its expectation: `dice` below.
"""
import argparse
import json
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
ADAPTER = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


LAST_BIT = 1.5e-8
LAST_BITS = 6e-8


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
def nuslerp(parameters="", base="", weights=(0.3, 0.7)):
    return models("", weights) + f"merge_method: nuslerp\n{base}parameters: {{{parameters}}}\n"


def stock(count, parameters=""):
    named = "".join(f"- model: {name}\n" for name in "ABCDEFGH"[:count])
    return f"models:\n{named}merge_method: model_stock\nbase_model: BASE\nparameters: {{{parameters}}}\n"


def karcher(count, parameters="", base=""):
    named = "".join(f"- model: {name}\n" for name in "ABCDEFGH"[:count])
    return f"models:\n{named}merge_method: karcher\n{base}parameters: {{{parameters}}}\n"


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
    "ties, one of density 0": (
        "models:\n- {model: A, parameters: {weight: 0.4, density: 0}}\n- {model: B, parameters: {weight: 0.6, density: 0.5}}\n"
        "merge_method: ties\nbase_model: BASE\n", 0.0),
    "slerp with zeros": (
        "models: [{model: ZERO}, {model: B}]\nmerge_method: slerp\nbase_model: B\nparameters: {t: 0.3}\n", LAST_BIT),
    "slerp from zeros": (
        "models: [{model: ZERO}, {model: B}]\nmerge_method: slerp\nbase_model: ZERO\nparameters: {t: 0.3}\n", LAST_BIT),
    "nuslerp": (nuslerp(), LAST_BITS),
    "nuslerp, filters": (nuslerp(weights=(FILTERS, GRADIENT)), LAST_BITS),
    "nuslerp, base": (nuslerp(base="base_model: BASE\n"), LAST_BITS),
    "nuslerp, rows": (nuslerp("nuslerp_flatten: false"), LAST_BITS),
    "nuslerp, columns": (nuslerp("nuslerp_flatten: false, nuslerp_row_wise: true"), LAST_BITS),
    "nuslerp, columns and base": (
        nuslerp("nuslerp_flatten: false, nuslerp_row_wise: true", "base_model: BASE\n"), LAST_BITS),
    "nuslerp with zeros": (
        "models:\n- {model: ZERO, parameters: {weight: 1}}\n- {model: B, parameters: {weight: 2}}\nmerge_method: nuslerp\n", LAST_BITS),
    "karcher": (karcher(2), LAST_BITS),
    "karcher of five": (karcher(5), LAST_BITS),
    "karcher, base and few steps": (karcher(3, "max_iter: 2, tol: 1.0e-7", "base_model: BASE\n"), LAST_BITS),
    "model_stock": (stock(2), LAST_BIT),
    "model_stock of four": (stock(4), LAST_BIT),
    "model_stock, filter-wise": (stock(3, "filter_wise: true"), LAST_BIT),
    "passthrough": ("models: [{model: A}]\nmerge_method: passthrough\n", 0.0),
    "passthrough, scaled": (
        "models:\n- {model: A, parameters: {scale: [{filter: o_proj, value: 0}, {filter: mlp, value: 0.7}]}}\n"
        "merge_method: passthrough\n", 0.0),
    "linear with an adapter": (
        "models:\n- {model: BASE+LORA, parameters: {weight: 0.4}}\n- {model: B, parameters: {weight: 0.6}}\n"
        "merge_method: linear\n", LAST_BIT),
    "anchors and strange keys": (
        "half: &half {weight: 0.5}\nnormalize: false\nmodels: [{model: A, parameters: *half}, {model: B, parameters: *half}]\n"
        "merge_method: linear\n", 0.0),
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


def make_adapter(path, base, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator) * 0.05
    tensors = {}
    for name, weight in base.items():
        if any(target in name for target in ADAPTER["target_modules"]):
            module = "base_model.model." + name.removesuffix(".weight")
            tensors |= {module + ".lora_A.weight": draw(4, weight.shape[1]), module + ".lora_B.weight": draw(weight.shape[0], 4)}
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps(ADAPTER | {"base_model_name_or_path": "elsewhere"}))


def load(path):
    return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}


def merged(salsa, folder, yaml):
    config = folder / "merge.yml"
    place = {"BASE": "base", "ZERO": "zero"} | {name: name.lower() for name in "ABCDEFGH"}
    config.write_text(re.sub(r": (BASE|ZERO|[A-H])\b", lambda m: f": {folder / place[m[1]]}", yaml.replace("+LORA", f"+{folder / 'lora'}")) + "dtype: float32\n")
    for name in ("theirs", "ours"):
        shutil.rmtree(folder / name, ignore_errors=True)
    options = OPTIONS.model_copy(update={"lora_merge_cache": str(folder / "merged")})
    run_merge(MergeConfiguration.model_validate(yaml_load(config.read_text())), str(folder / "theirs"), options)
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
            for name in ("base", "zero", "lora", *"abcdefgh"):
                (folder / name).mkdir()
            base = make(folder / "base", 10 * seed)
            for i, name in enumerate("abcdefgh", 1):
                make(folder / name, 10 * seed + i, base)
            zero = make(folder / "zero", 10 * seed + 9, base)
            zero = {k: v * 0 if "q_proj" in k or "norm" in k else v for k, v in zero.items()}
            save_file(zero, folder / "zero" / "model.safetensors", {"format": "pt"})
            make_adapter(folder / "lora", base, seed)
            for case, (yaml, _) in CASES.items():
                worst[case] = max(worst[case], compare(args.salsa, folder, yaml))
            errors = max(errors, dice(args.salsa, folder, base))
    for case, (_, tolerance) in CASES.items():
        print(f"{case:30} largest difference {worst[case]:.1e}, allowed {tolerance:.1e}")
    print(f"{'dare_linear, density 0.3':30} share of entries off by {errors:.1f} standard errors, allowed 5")
    sys.exit(errors > 5 or any(worst[case] > tolerance for case, (_, tolerance) in CASES.items()))


if __name__ == "__main__":
    main()
