#!/usr/bin/env python3
"""Gives changed files to the program and reports every panic, abort, hang and use of too much memory.

    fuzz/mutate.py target/debug/salsa                     10,000 files, two at a time
    fuzz/mutate.py target/debug/salsa --count 1500 --seed 7
    fuzz/mutate.py target/debug/salsa --signals 500       interrupts instead, and compares what the resumed run leaves

Needs Python 3.9 and nothing else. The seeds are made by the program itself, in seconds. What is found is kept in
--keep (default fuzz/found), one folder each with the command. Exit status 1 if anything was found.
"""

import argparse
import collections
import concurrent.futures
import gzip
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SECONDS, MEMORY = 10, 2 << 30
SMALL = ("--vocab_size 300 --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 "
         "--max_position_embeddings 128 --max_length 64").split()
RECORDS = [
    {"text": "a short text"},
    {"prompt": "p", "completion": " c"},
    {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 0.5},
    {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "i", "input": "x", "output": "o"},
]
TEMPLATES = [
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] | trim }}{% endfor %}",
    "{%- set ns = namespace(n=0) %}{%- for m in messages[::-1] %}{%- set ns.n = ns.n + 1 %}{{ m.content.split('a')[-1] }}{% endfor %}{{ ns.n * 3 }}",
    "{{ messages | tojson(indent=2) }}{{ '{:>4}'.format(1) }}{{ 'a'.center(9) }}{{ [0] * 5 }}{{ range(5) | join(',') }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{% for m in messages %}{% generation %}{{ f(m.content) }}{% endgeneration %}{% endfor %}",
]
RECIPE = """vars: {a: [x, y], b: "${vars.a}", n: 3}
stages:
  base: {kind: pretrain, dataset: texts.txt, vocab_size: 300, hidden_size: 32, num_hidden_layers: 1}
  sft: {kind: sft, model: base, dataset: data.jsonl, max_steps: "${vars.n}"}
  soup: {kind: soup, models: [base, sft], weights: [0.5, 0.5]}
"""
TOKENS = [b"9223372036854775807", b"18446744073709551615", b"-1", b"0", b"1e999", b"NaN", b"null", b"[]", b"{}", b'"', b"'",
          b"\\ud800", b"\xff", b"\x00", b"../", b"{{", b"}}", b"{%", b"%}", b"${vars.a}", b"*99999999", b"**9", b"|", b"~",
          b"[" * 500, b"(" * 500, b"+1" * 5000, b".a" * 5000, b"&a", b"*a", b"\n"]


# What a template can be made of that asks for much work or much memory.
ATOMS = ["[0]*100000000", "(0,)*1000000", "'x'*99999999", "'é'*3000000", "range(99999)", "range(10**9)", "messages",
         "messages[0].content", "ns.s", "ns.l", "{'a': [0]*10**8}", "[[0]*10000]*10000", "2**126", "1e308", "'%99999999d'",
         "'{:>99999999}'", "'{0}'*9999", "['xy'*999]*99999", "messages*99999", "messages[0]", "none", "x", "''", "0", "-1", "7",
         "9223372036854775807", "'a b '*99999", "'\\n'*999999", "'%s'*9999", "[ns.l]", "{ns.s: ns.l}", "loop", "f", "namespace"]
OPERATORS = ["~", "+", "*", "%", "in", "not in", "==", "!=", "<", ">=", "and", "or", "//", "**", "-", "/", "if x else"]
FILTERS = ["tojson", "tojson(indent=EXPR)", "join(EXPR)", "join", "indent(EXPR)", "indent(EXPR, true, true)", "center(EXPR)",
           "replace(EXPR, EXPR)", "replace('', EXPR)", "list", "sort", "unique|list", "reverse", "string", "upper", "title", "length",
           "format(EXPR)", "batch(EXPR)|list", "slice(EXPR)|list", "map('string')|join", "map(attribute=EXPR)|list", "first", "last",
           "select('eq', EXPR)|list", "groupby(EXPR)", "sum", "max", "min", "dictsort", "items|list", "int", "float", "round(EXPR)",
           "default(EXPR)", "trim(EXPR)", "escape", "attr(EXPR)", "sort(attribute=EXPR)", "map('center', EXPR)|list", "abs", "d(EXPR, true)"]
METHODS = ["split(EXPR)", "rsplit(EXPR, EXPR)", "split()", "replace(EXPR, EXPR)", "replace('', EXPR)", "ljust(EXPR)", "center(EXPR, EXPR)",
           "zfill(EXPR)", "join(EXPR)", "count(EXPR)", "find(EXPR)", "format(EXPR, EXPR)", "format_map(EXPR)", "expandtabs(EXPR)",
           "translate(EXPR)", "splitlines(true)", "strip(EXPR)", "startswith(EXPR)", "partition(EXPR)", "index(EXPR)", "items()", "keys()",
           "get(EXPR)", "title()", "casefold()", "upper()", "isprintable()", "x", "copy()"]
STATEMENTS = ["{{ EXPR }}", "{% set ns.s = EXPR %}", "{% set ns.l = [ns.l, EXPR] %}", "{% set ns.s = ns.s ~ ns.s %}", "{% set x = EXPR %}",
              "{% for i in EXPR %}BODY{% endfor %}", "{% for i in range(EXPR) %}BODY{% endfor %}", "{% if EXPR %}BODY{% else %}BODY{% endif %}",
              "{% set x %}BODY{% endset %}", "{% filter upper %}BODY{% endfilter %}", "{% macro f(a=EXPR) %}BODY{{ f(a) }}{% endmacro %}",
              "{{ f(EXPR) }}", "{% set x, y = EXPR %}", "{% call(z) f(EXPR) %}BODY{% endcall %}", "{{ dict(EXPR, a=EXPR) }}",
              "{{ raise_exception(EXPR) }}", "{{ strftime_now(EXPR) }}", "{% for a, b in EXPR recursive %}{{ loop(EXPR) }}{% endfor %}",
              "{% generation %}BODY{% endgeneration %}", "{% set ns.l = ns.l + ns.l %}", "{% for i in range(9999) %}BODY{% endfor %}"]


def nasty(rng, depth=0):
    """An expression without regard for what it costs."""
    again = lambda text: re.sub("EXPR", lambda _: nasty(rng, depth + 1), text)
    how = rng.randrange(8) if depth < 4 else 0
    if how < 3:
        return rng.choice(ATOMS)
    if how < 5:
        return f"({nasty(rng, depth + 1)} {rng.choice(OPERATORS)} {nasty(rng, depth + 1)})"
    if how < 6:
        return f"({nasty(rng, depth + 1)}|{again(rng.choice(FILTERS))})"
    if how < 7:
        return f"({nasty(rng, depth + 1)}).{again(rng.choice(METHODS))}"
    parts = [nasty(rng, depth + 1) if rng.random() < 0.5 else "" for _ in range(rng.choice((1, 2, 3)))]
    return f"({nasty(rng, depth + 1)})[{':'.join(parts) or '0'}]"


def statements(rng, depth=0):
    """A template of such expressions."""
    out = ""
    for _ in range(rng.choice((1, 2, 3))):
        statement = rng.choice(STATEMENTS) if depth < 3 else "{{ EXPR }}"
        statement = re.sub("EXPR", lambda _: nasty(rng), statement)
        out += re.sub("BODY", lambda _: statements(rng, depth + 1), statement)
    return out


def limits():
    # Address space: the stack of a rendering thread counts with its whole gigabyte, so resident memory is what is watched.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(command, folder, seconds=SECONDS):
    """The exit status (negative: a signal), what went wrong in one word, and stderr."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
                                 env=environment, preexec_fn=limits)
        end, fault = time.monotonic() + seconds, None
        wait = 0.002
        while child.poll() is None:
            if time.monotonic() > end:
                fault = "hang"
            elif resident(child.pid) > MEMORY:
                fault = "memory"
            if fault:
                child.kill()
                child.wait()
                break
            time.sleep(wait)
            wait = min(2 * wait, 0.05)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if fault is None and "panicked at" in text:
        fault = "panic"
    if fault is None and (child.returncode < 0 or child.returncode not in (0, 1, 2)):
        fault = "abort"
    return child.returncode, fault, text


def resident(process):
    try:
        return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def changed(rng, data):
    """A copy with one to four changes."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        # Headers are at the beginning and, in Parquet, at the end.
        if rng.random() < 0.4:
            at = min(at, rng.randrange(400))
        elif rng.random() < 0.2:
            at = max(0, len(data) - rng.randrange(400))
        length = rng.choice((1, 1, 2, 8, 40))
        how = rng.randrange(7)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < len(data):
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        elif how == 2:
            del data[at:at + length]
        elif how == 3:
            data[at:at] = rng.choice(TOKENS)
        elif how == 4:
            data[at:at] = data[at:at + length] * rng.choice((1, 3, 200))
        elif how == 5:
            del data[at:]
        else:
            # A number becomes another.
            digits = [i for i, byte in enumerate(data[:4000]) if 48 <= byte < 58]
            if digits:
                first = last = rng.choice(digits)
                while last < len(data) and 48 <= data[last] < 58:
                    last += 1
                data[first:last] = rng.choice(TOKENS[:6])
    return bytes(data)


def seeds(salsa, folder):
    """Kind: files to change, each with the command that reads it (FILE and MODEL stand for the changed copies)."""
    (folder / "texts.txt").write_text("A short text about a dog and a cat.\n" * 40)
    (folder / "data.jsonl").write_text((json.dumps(RECORDS[1]) + "\n") * 8)
    must(salsa, folder, ["pretrain", "--dataset", "texts.txt", "--output_dir", "base", *SMALL, "--max_steps", "1"])
    must(salsa, folder, ["sft", "--model", "base", "--dataset", "data.jsonl", "--output_dir", "adapter", "--use_peft", "true",
                         "--max_steps", "1", "--chat_template", "chatml"])
    cases = collections.defaultdict(list)
    for number, record in enumerate(RECORDS):
        text = (json.dumps(record) + "\n").encode() * 2
        cases["data"].append((f"d{number}.jsonl", text, ["inspect", "FILE"]))
        cases["data"].append((f"d{number}.jsonl.gz", gzip.compress(text), ["inspect", "FILE"]))
    # The program's own cache of data sets is no Parquet; a file of one plain column is written by hand where pyarrow is there.
    try:
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS[1:2] * 3), folder / "d.parquet")
        cases["data"] += [("d.parquet", (folder / "d.parquet").read_bytes(), ["inspect", "FILE"])] * 4
    except ImportError:
        print("pyarrow is not installed: no Parquet files (fuzz/run data has them)")
    for number, source in enumerate(TEMPLATES):
        (folder / "talk.jsonl").write_text(json.dumps(RECORDS[3]) + "\n")
        command = ["inspect", "../talk.jsonl", "--model", "../base", "--chat-template", "FILE"]
        cases["template"].append((f"t{number}.jinja", source.encode(), command))
        cases["nasty"] = [("nasty.jinja", None, command)]
    cases["recipe"].append(("r.yaml", RECIPE.encode(), ["run", "FILE", "--check"]))
    for kind, names in [("checkpoint", ("config.json", "model.safetensors")),
                        ("tokenizer", ("tokenizer.json", "tokenizer_config.json"))]:
        for name in names:
            if (folder / "base" / name).exists():
                cases[kind].append((name, (folder / "base" / name).read_bytes(), ["inspect", "MODEL"]))
    for text in tokenizers(json.loads((folder / "base" / "tokenizer.json").read_text())):
        cases["tokenizer"].append(("tokenizer.json", text.encode(), ["inspect", "../talk.jsonl", "--model", "MODEL"]))
    index = {"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": "model.safetensors"}}
    cases["checkpoint"].append(("model.safetensors.index.json", json.dumps(index).encode(), ["inspect", "MODEL"]))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        cases["adapter"].append((name, (folder / "adapter" / name).read_bytes(), ["inspect", "MODEL"]))
    return cases


def tokenizers(own):
    """The program's own tokenizer, and others of the kinds that it does not train."""
    yield json.dumps(own)
    added = sorted(own["added_tokens"], key=lambda token: token["id"])
    letters = ["<unk>", "▁", *(f"<0x{byte:02X}>" for byte in range(64)), *"aeu<|>sistant\n", "▁a", "##s", "ss"]
    words = list(dict.fromkeys([token["content"] for token in added] + letters))
    unknown = words.index("<unk>")
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoders = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    ids = {word: number for number, word in enumerate(words)}
    models = [
        {"type": "Unigram", "unk_id": unknown, "byte_fallback": True, "vocab": [[word, -1.5 * n] for n, word in enumerate(words)]},
        {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids},
        {"type": "WordLevel", "unk_token": "<unk>", "vocab": ids},
        {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True, "vocab": ids, "merges": [["s", "s"]]},
    ]
    for model in models:
        yield json.dumps({**own, "model": model, "pre_tokenizer": spaces, "decoder": {"type": "Sequence", "decoders": decoders},
                          "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Prepend", "prepend": "▁"}]},
                          "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}})


def must(salsa, folder, arguments):
    status, fault, said = run([salsa, *arguments], folder, 120)
    if status or fault:
        sys.exit(f"cannot make the seeds: salsa {' '.join(arguments)}: {fault or status}\n{said}")


def one(salsa, folder, keep, number, kind, case, data):
    name, _, arguments = case
    place = folder / f"case-{number}"
    place.mkdir()
    if "MODEL" in arguments:
        of = folder / ("adapter" if kind == "adapter" else "base")
        for file in of.iterdir():
            if file.is_file() and file.name != name:
                os.link(file, place / file.name)
    if kind == "recipe":
        for file in ("texts.txt", "data.jsonl"):
            os.link(folder / file, place / file)
    (place / name).write_bytes(data)
    command = [salsa, *({"FILE": name, "MODEL": "."}.get(word, word) for word in arguments)]
    _, fault, said = run(command, place)
    if fault:
        kept = keep / f"{fault}-{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
        shutil.copytree(place, kept, dirs_exist_ok=True)
        (kept / "command.txt").write_text(" ".join(command) + "\n" + said[-4000:])
        print(f"{fault}: {kind} {name}: {kept}", flush=True)
    shutil.rmtree(place)
    return kind, fault


def mutate(salsa, folder, keep, rng, count, jobs):
    cases, totals = seeds(salsa, folder), collections.Counter()
    kinds = sorted(cases)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        work = []
        for number in range(count):
            kind = kinds[number % len(kinds)]
            case = rng.choice(cases[kind])
            begin = "{% set ns = namespace(s='ab', l=[1]) %}"
            data = (begin + statements(rng)).encode() if kind == "nasty" else changed(rng, case[1])
            work.append(pool.submit(one, salsa, folder, keep, number, kind, case, data))
        for done in concurrent.futures.as_completed(work):
            kind, fault = done.result()
            totals[kind, "files"] += 1
            totals[kind, fault or "fine"] += 1
    for kind in kinds:
        print(kind, *(f"{what} {n}" for (of, what), n in sorted(totals.items()) if of == kind), sep="  ")
    return sum(n for (_, what), n in totals.items() if what not in ("files", "fine"))


def digest(folder):
    """Every weight file that a run leaves."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def interrupt(salsa, folder, keep, rng, count):
    """SIGTERM and SIGKILL at random moments of a recipe, until it is done; then the bytes are compared."""
    (folder / "texts.txt").write_text("A short text about a dog and a cat.\n" * 40)
    (folder / "data.jsonl").write_text((json.dumps(RECORDS[1]) + "\n") * 16)
    recipe = RECIPE.replace("num_hidden_layers: 1}", "num_hidden_layers: 1, max_steps: 6, save_steps: 2}")
    (folder / "r.yaml").write_text(recipe)
    begun = time.monotonic()
    must(salsa, folder, ["run", "r.yaml", "--out", "whole"])
    whole, expected = time.monotonic() - begun, digest(folder / "whole")
    sent, runs, wrong = 0, 0, 0
    while sent < count:
        out, before = folder / f"out-{runs}", sent
        while True:
            child = subprocess.Popen([salsa, "run", "r.yaml", "--out", out.name], cwd=folder, stdout=subprocess.DEVNULL,
                                     stderr=subprocess.PIPE, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            try:
                # After eight signals the run may finish.
                hurry = sent < count and sent - before < 8
                _, said = child.communicate(timeout=rng.uniform(0, whole) if hurry else 120)
                break
            except subprocess.TimeoutExpired:
                child.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM)))
                sent += 1
                child.communicate()
        runs += 1
        if child.returncode or digest(out) != expected:
            wrong += 1
            shutil.copytree(out, keep / f"signal-{runs}", dirs_exist_ok=True)
            print(f"signals: exit status {child.returncode}, other bytes or an error: {keep / f'signal-{runs}'}\n"
                  + said.decode(errors="replace")[-500:], flush=True)
        shutil.rmtree(out, ignore_errors=True)
    print(f"{sent} signals over {runs} runs, {wrong} wrong")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("salsa", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--signals", type=int)
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path(__file__).parent / "found")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    given.keep.mkdir(parents=True, exist_ok=True)
    salsa, rng = str(given.salsa.resolve()), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if given.signals:
            found = interrupt(salsa, folder, given.keep.resolve(), rng, given.signals)
        else:
            found = mutate(salsa, folder, given.keep.resolve(), rng, given.count, given.jobs)
    sys.exit(found > 0)


main()
