"""Time `salsa soup` of several random bfloat16 checkpoints beside plain copying, and mergekit if asked for.

    python soup_speed.py --salsa BIN [--counts 2 3 5 8] [--mergekit] [--workdir DIR]

The checkpoints have TinyLlama's shape: 1.1 billion parameters, 2.2 GB each, in three files. The limit is what any merge has to move:
`dd` reads all inputs and writes one of them, one process per core. All inputs are read once before each run, so what is measured is
memory and processor, not the disk, as long as inputs and output fit the page cache. Needs Linux and numpy; `--mergekit` needs
mergekit's environment. One line of JSON for each run; seconds are the best of the rounds.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, VOCAB, FILES = 2048, 5632, 22, 32, 4, 32000, 3
CONFIG = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=HIDDEN, intermediate_size=INTERMEDIATE,
    num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, vocab_size=VOCAB, hidden_act="silu",
    max_position_embeddings=2048, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, torch_dtype="bfloat16")


def shapes():
    key_values = HIDDEN // HEADS * KV_HEADS
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    for layer in range(LAYERS):
        for name, shape in (
                ("input_layernorm", [HIDDEN]), ("self_attn.q_proj", [HIDDEN, HIDDEN]), ("self_attn.k_proj", [key_values, HIDDEN]),
                ("self_attn.v_proj", [key_values, HIDDEN]), ("self_attn.o_proj", [HIDDEN, HIDDEN]),
                ("post_attention_layernorm", [HIDDEN]), ("mlp.gate_proj", [INTERMEDIATE, HIDDEN]),
                ("mlp.up_proj", [INTERMEDIATE, HIDDEN]), ("mlp.down_proj", [HIDDEN, INTERMEDIATE])):
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCAB, HIDDEN]


def make(path, seed):
    path.mkdir(parents=True)
    random, total, done = numpy.random.default_rng(seed), sum(numpy.prod(shape) for _, shape in shapes()), 0
    files, index = [[] for _ in range(FILES)], {}
    for name, shape in shapes():
        files[done * FILES // total].append((name, shape))
        done += numpy.prod(shape)
    for i, tensors in enumerate(files, 1):
        file, header, at = f"model-{i:05}-of-{FILES:05}.safetensors", {}, 0
        for name, shape in tensors:
            end = at + 2 * int(numpy.prod(shape))
            header[name], index[name] = dict(dtype="BF16", shape=shape, data_offsets=[at, end]), file
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path / file, "wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for _, shape in tensors:
                for first in range(0, shape[0], 1024):
                    rows = random.standard_normal((min(1024, shape[0] - first), *shape[1:]), dtype=numpy.float32) * 0.02
                    out.write((rows.view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes())
    (path / "model.safetensors.index.json").write_text(json.dumps(dict(metadata={}, weight_map=index)))
    (path / "config.json").write_text(json.dumps(CONFIG))


def weights(path):
    return sorted(path.glob("*.safetensors"))


def copy(models, output):
    output.mkdir()
    jobs = [f"if={file} of={output / file.name}" for file in weights(models[0])]
    jobs += [f"if={file} of=/dev/null" for model in models[1:] for file in weights(model)]
    lines = "\n".join(f"{job} bs=16M status=none" for job in jobs)
    subprocess.run(["xargs", "-P", str(len(os.sched_getaffinity(0))), "-L", "1", "dd"], input=lines, text=True, check=True)


def merged_by_mergekit(models, output):
    yaml = "models:\n" + "".join(f"- {{model: {model}, parameters: {{weight: 1}}}}\n" for model in models)
    config = output.with_name("mergekit.yml")
    config.write_text(yaml + "merge_method: linear\ndtype: bfloat16\n")
    program = str(Path(sys.executable).with_name("mergekit-yaml"))
    subprocess.run([program, str(config), str(output), "--quiet", "--async-write", "--write-threads", "2"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(work, models, output, rounds):
    """Seconds, and the largest resident size of a program started by it, in MiB."""
    seconds, peaks = [], []
    for _ in range(rounds):
        shutil.rmtree(output, ignore_errors=True)
        for file in (file for model in models for file in weights(model)):
            with open(file, "rb", buffering=0) as opened:
                while opened.read(1 << 24):
                    pass
        os.sync()
        read, write = os.pipe()
        if os.fork() == 0:  # the peak of children is counted per parent
            import resource
            start = time.perf_counter()
            work(models, output)
            line = f"{time.perf_counter() - start} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}"
            os.write(write, line.encode())
            os._exit(0)
        _, status = os.wait()
        os.close(write)
        line = os.read(read, 100).decode()
        os.close(read)
        if status or not line:
            sys.exit("the run failed")
        seconds.append(float(line.split()[0]))
        peaks.append(float(line.split()[1]))
    return min(seconds), max(peaks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--salsa", required=True, metavar="BIN")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 3, 5, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", action="store_true")
    parser.add_argument("--workdir", help="keep the checkpoints here and use them again")
    args = parser.parse_args()

    def salsa(*flags):
        return lambda models, output: subprocess.run(
            [args.salsa, "soup", *map(str, models), "--output", str(output), *flags], check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    tools = {"copy": copy, "salsa": salsa(), "salsa --no_digests": salsa("--no_digests")}
    if args.mergekit:
        tools["mergekit"] = merged_by_mergekit
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.workdir or temporary).resolve()
        for count in args.counts:
            models = [folder / f"model-{i}" for i in range(count)]
            for seed, model in enumerate(models):
                if not model.exists():
                    make(model, seed)
            limit = None
            for tool, work in tools.items():
                best, peak = measure(work, models, folder / "out", args.rounds)
                limit = limit or best
                row = dict(models=count, tool=tool, seconds=round(best, 3), of_limit=round(limit / best, 2), peak_mib=round(peak))
                print(json.dumps(row), flush=True)
            shutil.rmtree(folder / "out")


if __name__ == "__main__":
    main()
