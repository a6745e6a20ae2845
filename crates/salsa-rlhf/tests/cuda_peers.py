"""Times torch, transformers and PEFT on a GPU: what `salsa bench` and `salsa logprobs` on the same card are held against.

Models are made on the card with random weights, from the shapes in shapes/*.json or the config.json of a directory. One line of
JSON for each measurement on stdout, progress on stderr; what runs out of memory or of time prints a line with "failed".

    python cuda_peers.py peak
    python cuda_peers.py generate --shape llama2-7b --batch 64 --prompt 128 --new-tokens 128 --cache dynamic
    python cuda_peers.py generate --shape llama2-7b --cache static --compile --limit 180
    python cuda_peers.py train --shape llama2-7b --mode lora --batch 4 --seq 1024
    python cuda_peers.py train --shape gemma-2b --mode full --batch 4 --seq 1024 --checkpointing
    python cuda_peers.py logprobs --model DIR --input tokens.jsonl --output theirs.jsonl --dtype f32
    python cuda_peers.py compare ours.jsonl theirs.jsonl --tolerance 1e-4
"""
import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path = [path for path in sys.path if Path(path).resolve() != HERE]  # peft.py here has the name of the package
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

SHAPES = sorted(path.stem for path in (HERE / "shapes").glob("*.json"))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 16, 32
WARM_UP = 2  # steps of training before the clock runs
BYTES = 2**30  # of each buffer of the copy
LAUNCHES = 5000


class Clock:
    """Moments on the card's own time line, or on the processor's; what lies between two marks need not be waited for."""

    def __init__(self, device):
        self.card, self.marks = device.type == "cuda", []

    def mark(self):
        if self.card:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())

    def seconds(self):
        if not self.card:
            return [b - a for a, b in itertools.pairwise(self.marks)]
        self.marks[-1].synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(self.marks)]


def timed(device, times, work):
    """Median seconds of one call of `work`, after three calls to warm up."""
    for _ in range(3):
        work()
    clock = Clock(device)
    clock.mark()
    for _ in range(times):
        work()
        clock.mark()
    return statistics.median(clock.seconds())


def say(text):
    print(f"{time.perf_counter() - STARTED:6.1f} s  {text}", file=sys.stderr, flush=True)


def emit(arguments, **numbers):
    """One line: what was asked, where, and what came out; seconds and counts to six digits."""
    asked = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()
             if key not in ("work", "device", "limit")}
    numbers = {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in numbers.items()}
    versions = {name: sys.modules[name].__version__ for name in ("torch", "transformers", "peft") if name in sys.modules}
    print(json.dumps({**asked, "device": device_name(arguments.device), **versions, **numbers}), flush=True)


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def memory(device):
    if device.type != "cuda":
        return {}
    return {"peak_mib": torch.cuda.max_memory_allocated(device) / 2**20,
            "peak_reserved_mib": torch.cuda.max_memory_reserved(device) / 2**20}


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_model(arguments, dtype):
    """A model of the shape with random weights, which come into being on the card."""
    import transformers

    transformers.logging.set_verbosity_error()
    shape = arguments.shape
    path = HERE / "shapes" / f"{shape}.json" if shape in SHAPES else Path(shape, "config.json")
    keys = json.loads(path.read_text())
    config = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    config.eos_token_id = None  # nothing that is sampled ends a response
    say(f"transformers {transformers.__version__}, {path.name}")
    torch.manual_seed(0)
    with torch.device(arguments.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    synchronize(arguments.device)
    say(f"{sum(weight.numel() for weight in model.parameters()) / 1e9:.2f} G parameters on {device_name(arguments.device)}")
    return model


def multiplied(model):
    """The weights that a token meets in a product: all matrices, with the embedding table only where it is the head too."""
    tied = model.config.tie_word_embeddings
    return sum(weight.numel() for name, weight in model.named_parameters()
               if weight.dim() == 2 and (tied or "embed_tokens" not in name))


def adapted(model, arguments):
    """The model with adapters beside all linear projections: bf16, or with --master in f32 as PEFT has it by default."""
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules=LINEAR)
    with torch.device(arguments.device):
        return peft.get_peft_model(model, config, autocast_adapter_dtype=arguments.master)


def train(arguments):
    device, lora = arguments.device, arguments.mode == "lora"
    model = make_model(arguments, torch.float32 if arguments.master and not lora else torch.bfloat16)
    model.config.use_cache = False
    layers, products = model.model.layers, multiplied(model)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora:
        model = adapted(model, arguments)
    model.train()
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    if arguments.compile == "layers":  # one layer is compiled, and serves for all
        for layer in layers:
            layer.compile()
    forward = torch.compile(model) if arguments.compile == "model" else model
    vocabulary = model.config.vocab_size
    tokens = torch.randint(0, vocabulary, (arguments.batch, arguments.seq), device=device)

    def step():
        with torch.autocast(device.type, torch.bfloat16) if arguments.master else contextlib.nullcontext():
            loss = forward(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    first = step()
    for _ in range(WARM_UP - 1):
        step()
    say(f"warm: loss {first.item():.3f}")
    clock = Clock(device)
    clock.mark()
    for _ in range(arguments.steps):
        last = step()
        clock.mark()
    seconds = clock.seconds()
    median, count = statistics.median(seconds), arguments.batch * arguments.seq
    # Operations of a token, with N the weights in products and L those of the adapters: 2 N forward, 2 N for the gradient of the
    # inputs, 2 N for that of the weights. Adapters need the last for themselves alone: 4 N + 6 L. Neither attention's own
    # products nor what checkpointing computes a second time is counted.
    adapters = sum(weight.numel() for weight in learned) if lora else 0
    operations = (4 * products + 6 * adapters if lora else 6 * products) * count
    emit(arguments, step_s=median, fastest_s=min(seconds), tokens_per_s=count / median, tflops=operations / median / 1e12,
         trained=sum(weight.numel() for weight in learned), first_loss=first.item(), last_loss=last.item(), **memory(device))


def generate(arguments):
    from transformers import CompileConfig, LogitsProcessor

    device, count = arguments.device, arguments.new_tokens
    model = make_model(arguments, torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    prompt = torch.randint(0, model.config.vocab_size, (arguments.batch, arguments.prompt), device=device)
    options = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)
    if arguments.cache == "static":  # transformers compiles the decoding step by itself then, with mode reduce-overhead
        options |= dict(cache_implementation="static", disable_compile=not arguments.compile)
    if arguments.compile and device.type != "cuda":
        options["compile_config"] = CompileConfig(mode="default")
        options["compile_config"]._compile_all_devices = True  # by itself it compiles for accelerators only

    class Marks(LogitsProcessor):
        """Marks the moment at which each step's logits are there."""

        def __init__(self):
            self.clock = Clock(device)
            self.clock.mark()

        def __call__(self, tokens, logits):
            self.clock.mark()
            return logits

    def run(new_tokens):
        marks = Marks()
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, logits_processor=[marks],
                             **options)
        marks.clock.mark()
        assert out.shape == (arguments.batch, arguments.prompt + new_tokens), out.shape
        return marks.clock.seconds()

    run(count if arguments.compile else min(count, 8))
    say("warm")
    runs = [run(count) for _ in range(arguments.repeats)]
    whole = statistics.median(sum(seconds) for seconds in runs)
    # A run is the prompt, count - 1 steps and the last draw.
    emit(arguments, whole_s=whole, step_s=whole / count, tokens_per_s=arguments.batch * count / whole,
         prompt_s=statistics.median(seconds[0] for seconds in runs),
         decode_step_s=statistics.median(second for seconds in runs for second in seconds[1:-1] or seconds), **memory(device))


def peak(arguments):
    device, shrink = arguments.device, arguments.shrink
    for rows, columns, depth in ((8192, 8192, 8192), (4096, 4096, 4096), (4096, 11008, 4096)):
        rows, columns, depth = rows // shrink, columns // shrink, depth // shrink
        a = torch.randn(rows, depth, device=device, dtype=torch.bfloat16)
        b = torch.randn(columns, depth, device=device, dtype=torch.bfloat16)
        seconds = timed(device, 20, lambda: torch.nn.functional.linear(a, b))
        emit(arguments, what="gemm", rows=rows, columns=columns, depth=depth, seconds=seconds,
             tflops=2 * rows * columns * depth / seconds / 1e12)
    a = torch.ones(BYTES // shrink, device=device, dtype=torch.uint8)
    b = torch.empty_like(a)
    seconds = timed(device, 20, lambda: b.copy_(a))
    emit(arguments, what="copy", bytes=a.numel(), seconds=seconds, read_and_written_gb_s=2 * a.numel() / seconds / 1e9)
    one = torch.zeros(1, device=device)
    emit(arguments, what="launch", **launches(device, one))


def launches(device, one):
    """Microseconds of the smallest operation: in a row, each waited for, and in a row inside a CUDA graph."""
    def row(count):
        for _ in range(count):
            one.add_(1.0)

    def waited():
        one.add_(1.0)
        synchronize(device)

    numbers = {"in_a_row_us": timed(device, 5, lambda: row(LAUNCHES)) / LAUNCHES * 1e6}
    times = []
    for _ in range(200):
        start = time.perf_counter()
        waited()
        times.append(time.perf_counter() - start)
    numbers["waited_for_us"] = statistics.median(times) * 1e6
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            row(1000)
        numbers["in_a_graph_us"] = timed(device, 5, graph.replay) / 1000 * 1e6
    return numbers


@torch.inference_mode()
def logprobs(arguments):
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device, dtype = arguments.device, {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    lines = [json.loads(line) for line in arguments.input.read_text().split("\n") if line.strip()]
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype, attn_implementation="sdpa")
    model = model.to(device).eval()
    say(f"{len(lines)} lines, model on {device_name(device)}")
    with open(arguments.output, "w") as out:
        for line in lines:
            line["logprobs"] = logprobs_of(model, torch.tensor(line["tokens"], device=device))
            out.write(json.dumps(line) + "\n")
    emit(arguments, lines=len(lines), tokens=sum(len(line["tokens"]) for line in lines), **memory(device))


def logprobs_of(model, tokens):
    """log p(tokens[i+1] | tokens[..=i])"""
    if len(tokens) < 2:
        return []
    logits = model(tokens[None], use_cache=False).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0].tolist()


def compare(arguments):
    """One line of JSON for each pair of lines, one for all; exit 1 beyond the tolerance, or where the lines do not pair."""
    rows = [[json.loads(line) for line in path.read_text().split("\n") if line.strip()] for path in (arguments.a, arguments.b)]
    if not rows[0] or len(rows[0]) != len(rows[1]):
        sys.exit(f"{arguments.a} has {len(rows[0])} lines, {arguments.b} has {len(rows[1])}")
    differences, rank = [], lambda x: (x != x, x)  # not a number is further apart than any number
    for number, (a, b) in enumerate(zip(*rows), 1):
        if "logprobs" not in a or "logprobs" not in b:
            sys.exit(f"line {number}: no logprobs")
        if len(a["logprobs"]) != len(b["logprobs"]) or a.get("tokens") != b.get("tokens"):
            sys.exit(f"line {number}: not the same tokens")
        apart = [abs(x - y) for x, y in zip(a["logprobs"], b["logprobs"])]
        differences += apart
        at = max(range(len(apart)), key=lambda i: rank(apart[i]), default=None)
        print(json.dumps({"line": number, "count": len(apart), "worst": apart[at] if apart else 0.0, "at": at}))
    if not differences:
        sys.exit("no log-probs to compare")
    beyond = sum(not x <= arguments.tolerance for x in differences)
    print(json.dumps({"lines": len(rows[0]), "count": len(differences), "worst": max(differences, key=rank),
                      "mean": statistics.fmean(differences), "tolerance": arguments.tolerance, "beyond": beyond}))
    if beyond:
        sys.exit(f"{beyond} of {len(differences)} log-probs differ by more than {arguments.tolerance}")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="measure", required=True)

    def command(work, text):
        added = commands.add_parser(work.__name__, help=text, description=text,
                                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        added.set_defaults(work=work)
        if work is compare:
            return added
        added.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda, cuda:N or cpu")
        added.add_argument("--limit", type=int, default=0, metavar="SECONDS", help="give up then and say so; 0: never")
        return added

    def shape(added):
        added.add_argument("--shape", required=True, help=f"{', '.join(SHAPES)}, or a directory with a config.json")

    added = command(train, "steps of AdamW on random tokens, forward and backward")
    shape(added)
    added.add_argument("--mode", required=True, choices=["lora", "full"],
                       help=f"adapters of rank {RANK} beside all linear projections, or all weights")
    added.add_argument("--batch", type=int, default=4)
    added.add_argument("--seq", type=int, default=1024)
    added.add_argument("--steps", type=int, default=8, help=f"measured, after {WARM_UP} others")
    added.add_argument("--checkpointing", action="store_true", help="compute each layer again in the backward pass")
    added.add_argument("--master", action="store_true",
                       help="what is trained is f32, under autocast; without, all is bf16, AdamW's moments too")
    added.add_argument("--compile", nargs="?", choices=["layers", "model"], const="layers",
                       help="torch.compile for a layer (seconds) or the model (minutes)")

    added = command(generate, "sample from a random model, without an end")
    shape(added)
    added.add_argument("--batch", type=int, default=64)
    added.add_argument("--prompt", type=int, default=128)
    added.add_argument("--new-tokens", type=int, default=128)
    added.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    added.add_argument("--compile", action="store_true", help="with --cache static: a compiled decoding step (a minute)")
    added.add_argument("--repeats", type=int, default=3)

    added = command(peak, "products in bf16, copies on the card and kernel launches")
    added.add_argument("--shrink", type=int, default=1, help="divide all sizes, to try it without a card")

    added = command(logprobs, 'lines with "tokens" become lines with "logprobs"')
    added.add_argument("--model", type=Path, required=True)
    added.add_argument("--input", type=Path, required=True)
    added.add_argument("--output", type=Path, required=True)
    added.add_argument("--dtype", choices=["f32", "bf16"], default="f32")

    added = command(compare, "the worst differences of the log-probs of two files")
    added.add_argument("a", type=Path)
    added.add_argument("b", type=Path)
    added.add_argument("--tolerance", type=float, default=1e-4)

    arguments = parser.parse_args()
    if arguments.work is generate and arguments.compile and arguments.cache != "static":
        parser.error("--compile needs --cache static")
    if arguments.work in (train, generate) and arguments.shape not in SHAPES and not Path(arguments.shape, "config.json").is_file():
        parser.error(f"--shape {arguments.shape}: neither one of {', '.join(SHAPES)} nor a directory with a config.json")
    if arguments.work is not compare and arguments.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu runs small shapes without one")
    return arguments


def main():
    arguments = parse()
    if arguments.work is compare:
        return compare(arguments)

    def give_up(*_):
        emit(arguments, failed=f"not finished within {arguments.limit} s")
        os._exit(124)  # whatever is being compiled is left behind

    if arguments.device.index is not None:
        torch.cuda.set_device(arguments.device)
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(arguments.limit)
    try:
        arguments.work(arguments)
    except torch.OutOfMemoryError as error:
        emit(arguments, failed="out of memory", **memory(arguments.device))
        sys.exit(str(error))
    finally:
        signal.alarm(0)  # the measurement is over, though Python may take a while to end


STARTED = time.perf_counter()

if __name__ == "__main__":
    main()
