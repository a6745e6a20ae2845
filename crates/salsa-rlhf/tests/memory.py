"""Announced memory of every kind of stage against the highest resident size of its process.

    python memory.py WORKDIR --salsa BIN [--model DIR --pairs FILE] [--only WORD ...]

Without --model, the model is a small one with the shape of a Llama, made by the program together with its data (the toy
world). With it, any Hugging Face language model and a `.jsonl` file of preference pairs. Each setting runs in a process
of its own, in f32 and bf16, with and without adapters. Prints a Markdown table; the exit status is 1 if a stage used
more than it had announced, or announced more than --slack of what it used. Needs Linux.
"""
import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

UNITS = {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024}
MEMORY = re.compile(r"^(?:\S+: )?memory: [\d.]+ [MG]iB \((.*?)\), ", re.MULTILINE)
PART = re.compile(r" ([\d.]+) (MiB|GiB)")
SMALL = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=256, intermediate_size=704, num_hidden_layers=6,
    num_attention_heads=8, num_key_value_heads=4, vocab_size=2048, hidden_act="silu", max_position_embeddings=1024,
    rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False)


def run(salsa, words, env):
    """Runs a stage; returns (announced, peak) in MiB, and the announced parts."""
    with open("log", "wb") as log:
        child = subprocess.Popen([salsa, *words], stdout=log, stderr=log, env=env)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    text = Path("log").read_text(errors="replace")
    if child.returncode != 0:
        sys.exit(f"salsa {' '.join(map(str, words))}\n{text}")
    found = MEMORY.search(text)
    if not found:
        sys.exit(f"salsa {' '.join(map(str, words))} announced no memory\n{text}")
    # The parts are exact to a tenth of a MiB or of a GiB, whichever they are printed in.
    announced = sum(float(part[1]) * UNITS[part[2]] for part in PART.finditer(found[1]))
    return announced, usage.ru_maxrss / 1024, found[1]


def settings(model, data, size, dtype, adapter):
    """The commands of all stages: (name, words)."""
    number = ["--dtype", dtype]
    lora = ["--use_peft", "true", "--lora_r", "16"] if adapter else []
    tail = f"-{dtype}{'-lora' if adapter else ''}"
    sft, reward = f"sft{tail}", f"reward{tail}"
    train = [*number, *lora, "--per_device_train_batch_size", size["pass"], "--max_steps", "2", "--save_steps", 0]
    length = ["--max_length", size["length"]]
    rl = ["--response_length", size["new"], "--max_prompt_length", size["length"] // 2]
    # Plans are for responses of full length; at this temperature an end token is as rare as any other.
    endless = ["--temperature", 10]
    chat = ["--dataset", data["pairs"]]
    yield "sft", ["sft", "--model", model, "--dataset", data["sft"], "--output_dir", sft, *train, *length]
    yield "reward", ["reward", "--model", model, *chat, "--output_dir", reward, *train, *length]
    for name in ("dpo", "kto", "orpo", "cpo"):
        yield name, [name, "--model", model, *chat, "--output_dir", f"{name}{tail}", *train, *length]
    soup = json.dumps({"models": [sft, sft] if adapter else [str(model), sft]})
    yield "kto-soup", ["kto", "--model", sft, "--ref_model_name_or_path", soup, *chat, "--output_dir", f"kto-soup{tail}",
                       *train, *length]
    yield "ppo", ["ppo", "--model", sft, "--reward_model", reward, "--dataset", data["prompts"], "--output_dir",
                  f"ppo{tail}", *number, *lora, "--total_episodes", size["batch"], "--batch_size", size["batch"],
                  "--num_ppo_epochs", 1, *rl, *endless]
    rest = [*number, "--max_new_tokens", size["new"], "--max_prompt_length", size["length"] // 2, "--max_prompts", size["prompts"]]
    arms = json.dumps({"a": str(model), "b": sft})
    yield "evaluate", ["evaluate", "--arms", arms, "--baseline", "a", "--anchors", json.dumps({"a": str(model)}),
                       "--datasets", json.dumps([{"name": "set", "dataset": str(data["prompts"])}]), "--reward_model",
                       reward, "--output_dir", f"evaluate{tail}", *rest[:4], "--max_prompt_length", size["length"] // 2]
    if not adapter:
        yield "landscape", ["landscape", "--models", json.dumps([str(model), sft]), "--reward_model", reward, "--prompts",
                            data["prompts"], "--output_dir", f"landscape{tail}", "--steps", 2, *rest]
    lines = f"answers{tail}.jsonl"
    yield "generate", ["generate", "--model", sft, "--input", data["lines"], "--output", lines, *number,
                       "--max_new_tokens", size["new"], "--batch_size", size["slots"]]
    yield "score", ["score", "--model", reward, "--input", lines, "--output", f"scores{tail}.jsonl", *number]
    yield "logprobs", ["logprobs", "--model", sft, "--input", lines, "--output", f"logprobs{tail}.jsonl", *number]


def prepare(arguments, env):
    """A model and data: its own ones, or those of the toy world."""
    def made(words):
        done = subprocess.run([arguments.salsa, *map(str, words)], env=env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr)

    if arguments.model:
        with open(arguments.pairs) as file:
            rows = [json.loads(line) for line in file][:400]
        rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
        model = arguments.model.resolve()
        size = dict(length=256, new=48, batch=8, slots=16, prompts=16)
        size["pass"] = 4
    else:
        if not Path("world").exists():
            made(["kitchen", "--output_dir", "world"])
            made(["pretrain", "--dataset", "world/pretrain.jsonl", "--output_dir", "tokens", "--max_steps", 1,
                  "--vocab_size", SMALL["vocab_size"], "--hidden_size", 32, "--num_attention_heads", 2,
                  "--num_hidden_layers", 1])
            vocabulary = json.loads(Path("tokens/config.json").read_text())["vocab_size"]
            Path("small.json").write_text(json.dumps({**SMALL, "vocab_size": vocabulary}))
            made(["init", "small.json", "--tokenizer", "tokens", "--output", "small"])
        with open("world/preferences.jsonl") as file:
            rows = [json.loads(line) for line in file][:1500]
        model = Path("small").resolve()
        size = dict(length=256, new=64, batch=64, slots=64, prompts=64)
        size["pass"] = 32
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompt = lambda row: {"prompt": row["prompt"]}
    few = [prompt(row) for row in rows if len(json.dumps(row["prompt"])) < 600][:4 * size["prompts"]]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    Path("lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few[:2 * size["slots"]]))
    sft = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    Path("sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sft))
    return model, dict(pairs="pairs.jsonl", prompts="prompts.jsonl", lines="lines.jsonl", sft="sft.jsonl"), size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--salsa", required=True, type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--pairs", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--slack", type=float, default=0.15)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    model = arguments.model
    arguments.model = model and model.resolve()
    os.chdir(arguments.workdir)
    env = {**os.environ, "SALSA_DEVICE": "cpu"}
    model, data, size = prepare(arguments, env)
    print("| stage | dtype | adapters | announced, MiB | used, MiB | announced / used | parts |\n|---|---|---|---|---|---|---|")
    wrong = 0
    for dtype in ("f32", "bf16"):
        for adapter in (False, True):
            for stage, words in settings(model, data, size, dtype, adapter):
                if arguments.only and stage not in arguments.only:
                    continue
                announced, used, parts = run(arguments.salsa, [str(word) for word in words], env)
                ratio = announced / used
                wrong += not 1 <= ratio <= 1 + arguments.slack
                print(f"| {stage} | {dtype} | {'yes' if adapter else 'no'} | {announced:.0f} | {used:.0f} | {ratio:.2f} | {parts} |",
                      flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
