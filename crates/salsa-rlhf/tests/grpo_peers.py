#!/usr/bin/env python3
"""A GRPO update of TRL's GRPOTrainer beside one of `salsa bench grpo`: the same model shape, prompts and lengths.

    grpo_peers.py --salsa target/release/salsa --trl FOLDER_OF_TRL_1.16 [--rounds 3]

TRL runs on random weights of the shape, with random token prompts and random rewards; end tokens are never sampled
(`min_new_tokens`), as in `salsa bench`. Variants: f32 and bf16, eager and `torch.compile`, 8, 32 or 128 sequences per pass. The
seconds of an update are those between two optimizer steps. Runs alternate; the fastest variant counts.
"""
import argparse, json, os, statistics, subprocess, sys, tempfile, time

# The folder of this file holds peft.py, which is not the library.
sys.path.pop(0)

SHAPE = dict(hidden=256, layers=8, vocab=4096, head_dim=32)
PROMPTS, GENERATIONS, PROMPT, RESPONSE = 32, 4, 32, 64


def trl(dtype, compiled, per_pass, updates):
    import torch, random
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from tokenizers import Tokenizer, models, pre_tokenizers
    from trl import GRPOConfig, GRPOTrainer
    torch.manual_seed(1)
    torch.set_num_threads(int(os.environ.get("THREADS", os.cpu_count())))
    words = {f"w{i}": i for i in range(SHAPE["vocab"])}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="w1", pad_token="w2", unk_token="w0",
                                        padding_side="left")
    heads = SHAPE["hidden"] // SHAPE["head_dim"]
    config = LlamaConfig(vocab_size=SHAPE["vocab"], hidden_size=SHAPE["hidden"], num_hidden_layers=SHAPE["layers"],
                         num_attention_heads=heads, num_key_value_heads=heads,
                         intermediate_size=SHAPE["hidden"] * 8 // 3 // 8 * 8, max_position_embeddings=256,
                         tie_word_embeddings=False, eos_token_id=1, pad_token_id=2, bos_token_id=None)
    model = LlamaForCausalLM(config)
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rng = random.Random(1)
    prompt = lambda: " ".join(f"w{rng.randrange(3, SHAPE['vocab'])}" for _ in range(PROMPT))
    data = Dataset.from_list([{"prompt": prompt()} for _ in range(PROMPTS * (updates + 2))])
    batch = PROMPTS * GENERATIONS
    arguments = GRPOConfig(
        output_dir=folder + "/out", per_device_train_batch_size=per_pass, gradient_accumulation_steps=batch // per_pass,
        num_generations=GENERATIONS, max_completion_length=RESPONSE, beta=0.04, learning_rate=1e-6, max_steps=updates + 1,
        temperature=1.0, bf16=False, gradient_checkpointing=False, report_to=[], logging_steps=1000, save_strategy="no",
        use_cpu=True, torch_compile=compiled, generation_kwargs={"min_new_tokens": RESPONSE}, disable_tqdm=True,
        model_init_kwargs={"dtype": "bfloat16" if dtype == "bf16" else "float32"})
    times = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

    trainer = GRPOTrainer(model=folder, reward_funcs=lambda completions, **_: [rng.random() for _ in completions],
                          args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()])
    trainer.train()
    print(json.dumps({"update_s": [b - a for a, b in zip(times, times[1:])]}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--salsa")
    parser.add_argument("--trl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--peer", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        dtype, compiled, per_pass = given.peer
        return trl(dtype, compiled == "compile", int(per_pass), given.updates)
    environment = {**os.environ, "PYTHONPATH": given.trl}

    def peer(variant):
        command = [sys.executable, __file__, "--updates", str(given.updates), "--peer", *variant]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print("trl", *variant, "failed:", done.stderr.strip().splitlines()[-1][:200], flush=True)
            return None
        return min(json.loads(done.stdout.strip().splitlines()[-1])["update_s"])

    def ours(dtype):
        command = [given.salsa, "bench", "grpo", "--json", "--dtype", dtype, "--updates", str(given.updates)]
        for key, value in SHAPE.items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        return min(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["update_s"])

    variants = [(dtype, mode, "32") for dtype in ("f32", "bf16") for mode in ("eager", "compile")]
    variants += [("f32", "eager", "128"), ("bf16", "eager", "8")]
    first = {variant: peer(variant) for variant in variants}
    for variant, seconds in first.items():
        print("trl", *variant, "s per update:", seconds and round(seconds, 3), flush=True)
    best = min((variant for variant in variants if first[variant]), key=lambda variant: first[variant])
    rows = []
    for _ in range(given.rounds):
        rows.append((ours("bf16"), peer(best), ours("f32")))
    salsa, theirs, f32 = (statistics.median(column) for column in zip(*rows))
    print(f"median of {given.rounds}: salsa bf16 {salsa:.3f} s, f32 {f32:.3f} s; TRL {' '.join(best)} {theirs:.3f} s; "
          f"TRL / salsa {theirs / salsa:.2f}")


main()
