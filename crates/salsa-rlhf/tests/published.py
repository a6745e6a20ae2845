"""Compare the scores of `salsa judge` with the published numbers of AlpacaEval and Arena-Hard-Auto.

    python crates/salsa-rlhf/tests/published.py --salsa BIN --alpaca-eval DIR --arena-hard DIR

Needs Python alone, and checkouts (or bare repositories) of tatsu-lab/alpaca_eval (cd543a1 was used) and of
lmarena/arena-hard-auto (196f6b8). AlpacaEval's data are not for commercial use: they are read where they lie, and
nothing of them is part of this project. What a checkout does not have is skipped with a line that says so; the last
line counts.

AlpacaEval, every model whose annotations are there:
- counted: win rate, standard error, discrete win rate, wins, losses, draws, rows and length are those of the leaderboard;
- asked again through `transport: batch`, the recorded log-probs being the answers: order and preference of each row;
- with scikit-learn (below 1.6), pandas, patsy and huggingface_hub installed: the length-controlled win rates of the
  tool's own code on the same annotations, with difficulties and a gamed baseline that are drawn here (the tool's lie on
  a hub).
Arena-Hard: v0.1's win rates of the leaderboard's file, v2's creative writing of its README (judgments of both judges).
"""
import argparse
import csv
import io
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import types
from pathlib import Path

JUDGED = "weighted_alpaca_eval_gpt4_turbo"
TABLE = f"src/alpaca_eval/leaderboards/data_AlpacaEval_2/{JUDGED}_leaderboard.csv"
TEMPLATE = "src/alpaca_eval/evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
# Keys of the leaderboard and of our results, with the difference allowed: preferences have ten decimals in the files.
FIGURES = {"win_rate": 1e-8, "standard_error": 1e-8, "discrete_win_rate": 1e-8, "n_wins": 0, "n_wins_base": 0,
           "n_draws": 0, "n_total": 0, "avg_length": 0}
QUESTIONS = 805
# Models whose length-controlled win rates are fitted by the tool's code too, which takes seconds for each.
FITTED = ("FuseChat-Llama-3.2-3B-Instruct", "alpaca-7b", "gpt-3.5-turbo-0301", "gpt4_gamed", "vicuna-13b")
# README of Arena-Hard v2: creative writing, GPT-4.1 and Gemini 2.5 together.
CREATIVE = {"deepseek-r1": 77.0, "qwq-32b": 60.9}


class Checkout:
    """Files of a checkout, or of the newest commit of a repository without one."""

    def __init__(self, place):
        self.place = place
        self.is_bare = not any(path.name in ("src", "data") for path in place.iterdir())

    def read(self, name):
        """The bytes of a file; none where it is absent (or a pointer to a file elsewhere)."""
        if self.is_bare:
            run = subprocess.run(["git", "-C", self.place, "show", f"HEAD:{name}"], capture_output=True)
            content = run.stdout if run.returncode == 0 else None
        else:
            content = (self.place / name).read_bytes() if (self.place / name).is_file() else None
        return None if content is None or content.startswith(b"version https://git-lfs") else content

    def folders(self, name):
        if self.is_bare:
            words = ["git", "-C", self.place, "ls-tree", "-d", "--name-only", "HEAD", f"{name}/"]
            return [line.split("/")[-1] for line in subprocess.check_output(words, text=True).splitlines()]
        return sorted(path.name for path in (self.place / name).iterdir() if path.is_dir())


class Count:
    agree = skipped = 0

    def __init__(self):
        self.differ, self.apart = [], {}

    def close(self, what, ours, theirs, tolerance):
        if ours is not None and abs(ours - theirs) <= tolerance:
            self.agree += 1
        else:
            self.differ.append(f"{what}: {ours} here, {theirs} published")

    def skip(self, what):
        print(f"skipped: {what}")
        self.skipped += 1


def judge(binary, place, protocol, *words, code=0):
    """The results of a run."""
    out = ["--output_dir", Path(tempfile.mkdtemp(dir=place)) / "out"] if "--output_dir" not in words else []
    words = [binary, "judge", "--protocol", protocol, "--resamples", "10", *words, *out]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == code, run.stderr[-2000:]
    return json.loads(run.stdout) if code == 0 else None


def counted(binary, place, model, file, published, count):
    """The leaderboard's figures of a file of annotations."""
    (found,) = judge(binary, place, "alpaca_eval2", "--judgments", f"[{file}]")["models"].values()
    for key, tolerance in FIGURES.items():
        if key == "avg_length" and float(published["n_total"]) < QUESTIONS:
            continue  # it is the mean over all outputs, and the file lacks those of the rows without a verdict
        count.close(f"{model} {key}", found[key], float(published[key]), tolerance)


def asked_again(binary, place, model, rows, template, count):
    """The recorded replies come in through a batch: the drawn order and the preference of every row."""
    asked = [row for row in rows if row["output_1"] != row["output_2"]]
    if any(not row.get("raw_completion") for row in asked):
        return count.skip(f"{model}: its replies are not recorded")
    if len({row["instruction"] for row in rows}) != len(rows):
        return count.skip(f"{model}: an instruction occurs twice")
    if not asked:
        return count.skip(f"{model}: it is the baseline, so nothing is asked")
    folder = Path(tempfile.mkdtemp(dir=place))
    for name, key in (("baseline", "output_1"), ("model", "output_2")):
        outputs = [{"instruction": row["instruction"], "output": row[key], "generator": name} for row in rows]
        (folder / f"{name}.json").write_text(json.dumps(outputs))
    (folder / "clf.txt").write_bytes(template)
    words = ["--answers", f"{{baseline: {folder}/baseline.json, model: {folder}/model.json}}", "--baseline", "baseline",
             "--templates", folder / "clf.txt", "--transport", "batch", "--output_dir", folder / "out"]
    judge(binary, place, "alpaca_eval2", *words, code=1)
    requests = [json.loads(line) for line in (folder / "out/requests.jsonl").read_text().split("\n") if line]
    assert len(requests) == len(asked), (model, len(requests), len(asked))
    with open(folder / "out/responses.jsonl", "w") as file:
        for request, row in zip(requests, asked):
            assert row["instruction"] in request["body"]["messages"][-1]["content"], model
            raw = row["raw_completion"]
            choice = {"index": 0, "message": {"role": "assistant", "content": raw["text"]}, "finish_reason": "stop",
                      "logprobs": {"content": raw["logprobs"]["content"]}}
            body = {"model": "m", "choices": [choice]}
            answer = {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}
            file.write(json.dumps(answer) + "\n")
    judge(binary, place, "alpaca_eval2", *words)
    ours = json.loads((folder / "out/model_judgment/model/annotations.json").read_text())
    assert [row["instruction"] for row in ours] == [row["instruction"] for row in rows]
    for number, (row, published) in enumerate(zip(ours, rows)):
        count.close(f"{model} row {number}", row["preference"], published["preference"], 1e-6)


def tool_glm(checkout):
    """The tool's module of length control, its two imports from the package replaced; none without its libraries."""
    try:
        import huggingface_hub
        import pandas
        import patsy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        print(f"skipped: length control in the tool's own code ({error})")
        return None
    package = types.ModuleType("alpaca_eval")
    package.constants = types.SimpleNamespace(DATASETS_TOKEN="", DATASETS_FORCE_DOWNLOAD=False, DEFAULT_CACHE_DIR="")
    package.types = types.SimpleNamespace(AnyLoadableDF=object)
    package.utils = types.SimpleNamespace(convert_to_dataframe=lambda rows: rows)
    winrate = types.ModuleType("alpaca_eval.metrics.winrate")
    mean = lambda rows: {"win_rate": 100 * (rows["preference"].astype(float).replace({0.0: 1.5}) - 1).mean()}
    winrate.get_winrate = mean
    metrics = types.ModuleType("alpaca_eval.metrics")
    metrics.__path__ = []
    sys.modules |= {"alpaca_eval": package, "alpaca_eval.metrics": metrics, "alpaca_eval.metrics.winrate": winrate}
    module = types.ModuleType("alpaca_eval.metrics.glm_winrate")
    module.__package__, module.__file__ = "alpaca_eval.metrics", __file__
    source = checkout.read("src/alpaca_eval/metrics/glm_winrate.py").decode()
    exec(compile(source, "glm_winrate.py", "exec"), module.__dict__)
    return module, pandas, huggingface_hub


def drawn_tables(place, rows, rng):
    """Files in the layout of the hub: a difficulty for each place, and two gamed baselines."""
    difficulties = [rng.gauss(0, 1.2) for _ in rows]
    (place / "instruction_difficulty.csv").write_text(
        ",instruction_difficulty\n" + "".join(f"{n},{d!r}\n" for n, d in enumerate(difficulties)))
    lines = ["model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n"]
    for name, shift in (("concise", 1.1), ("verbose", -1.1)):
        for number, difficulty in enumerate(difficulties):
            length = rng.gauss(shift, 0.5)
            chance = 1 / (1 + math.exp(1.5 * math.tanh(length) - 0.6 * difficulty))
            lines.append(f"{name},{min(max(rng.gauss(chance, 0.2), 0), 1)!r},{number},{length!r},{difficulty!r},False\n")
    (place / "df_gamed.csv").write_text("".join(lines))


def length_controlled(binary, place, model, rows, file, glm, count):
    """The three forms of length control, fitted by the tool's code and by ours."""
    module, pandas, _ = glm
    folder = Path(tempfile.mkdtemp(dir=place))
    drawn_tables(folder, rows, random.Random(model))
    module.hf_hub_download = lambda filename, **_: folder / filename
    tables = ["--instruction_difficulty", folder / "instruction_difficulty.csv", "--df_gamed", folder / "df_gamed.csv"]
    for form, words in (("minimal", []), ("noreg", tables[:2]), ("v1", tables)):
        found = judge(binary, place, "alpaca_eval2", "--judgments", f"[{file}]", *words)
        ((_, ours),) = found["models"].items()
        assert ours["length_controlled"]["rule"] == f"length_controlled_{form}", ours
        info = module.GLM_INFO[f"length_controlled_{form}"]
        optimum = {"tol": 1e-9, "max_iter": 20000}
        for kind, solver, tolerance in (("to the optimum", optimum, 1e-4), ("as it is", {}, 0.2)):
            # The tool's solver stops early, and where it stops depends on its random order: tenths of a point.
            theirs = module.get_length_controlled_winrate(
                pandas.DataFrame(rows), save_weights_dir=None, is_warn_extreme_changes=False,
                glm_info=info | {"kwargs": info["kwargs"] | solver})
            for key, other in (("win_rate", "length_controlled_winrate"), ("standard_error", "lc_standard_error")):
                what = f"{model} {form} {key}, tool {kind}"
                count.close(what, ours["length_controlled"][key], float(theirs[other]), tolerance)
            apart = abs(ours["length_controlled"]["win_rate"] - float(theirs["length_controlled_winrate"]))
            count.apart[kind] = max(count.apart.get(kind, 0.0), apart)


def alpaca(binary, checkout, place, models, count):
    table = checkout.read(TABLE)
    if table is None:
        return count.skip(f"AlpacaEval: {checkout.place} has no {TABLE}")
    published = {row[""]: row for row in csv.DictReader(io.StringIO(table.decode()))}
    template, glm = checkout.read(TEMPLATE), tool_glm(checkout)
    for model in checkout.folders("results"):
        content = checkout.read(f"results/{model}/{JUDGED}/annotations.json")
        if content is None or model not in published or (models and model not in models):
            absent = "no file of annotations here" if content is None else "not in the leaderboard"
            if model in published or content is not None:
                count.skip(f"{model}: {absent if not models or model in models else 'not asked for'}")
            continue
        file = place / "annotations.json"
        file.write_bytes(content)
        rows = json.loads(content)
        before, trouble = count.agree, len(count.differ)
        counted(binary, place, model, file, published[model], count)
        asked_again(binary, place, model, rows, template, count)
        if glm and model in FITTED:
            length_controlled(binary, place, model, rows, file, glm, count)
        print(f"{model}: {count.agree - before} numbers agree, {len(count.differ) - trouble} differ", flush=True)


def arena_v01(binary, checkout, place, count):
    table = checkout.read("leaderboard/arena_hard_leaderboard_20240731.csv")
    if table is None:
        return count.skip(f"Arena-Hard v0.1: {checkout.place} has no leaderboard of 2024-07-31")
    published = {row["model"]: row for row in csv.DictReader(io.StringIO(table.decode()))}
    for model in ("gpt-4-0613", "gpt-3.5-turbo-0125"):
        content = checkout.read(f"data/arena-hard-v0.1/model_judgment/gpt-4-1106-preview/{model}.jsonl")
        if content is None:
            count.skip(f"Arena-Hard v0.1: the judgments of {model} are not here")
            continue
        (place / f"{model}.jsonl").write_bytes(content)
        found = judge(binary, place, "arena_hard_v0.1", "--judgments", f"[{place / model}.jsonl]")
        score = found["categories"]["arena-hard-v0.1"]["models"][model]["score"]
        count.close(f"v0.1 {model}", score, float(published[model]["score"]), 0.00501)


def arena_v2(binary, checkout, place, count):
    for model, published in CREATIVE.items():
        files = []
        for name in ("gpt-4.1", "gemini-2.5"):
            content = checkout.read(f"data/arena-hard-v2.0/model_judgment/{name}/{model}.jsonl")
            if content is not None:
                files.append(place / f"{name}-{model}.jsonl")
                files[-1].write_bytes(content)
        if len(files) < 2:
            count.skip(f"Arena-Hard v2: the judgments of {model} are not here")
            continue
        found = judge(binary, place, "arena_hard_v2", "--judgments", f"[{files[0]}, {files[1]}]")
        score = found["categories"]["creative_writing"]["models"][model]["score"]
        # Published is the mean of 100 unseeded resamples, with one decimal.
        count.close(f"v2 creative writing {model}", score, published, 0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--salsa", required=True, type=Path)
    parser.add_argument("--alpaca-eval", type=Path, help="a checkout of tatsu-lab/alpaca_eval")
    parser.add_argument("--arena-hard", type=Path, help="a checkout of lmarena/arena-hard-auto")
    parser.add_argument("--models", nargs="*", help="AlpacaEval: these models only")
    words = parser.parse_args()
    binary, count = words.salsa.resolve(), Count()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        if words.alpaca_eval:
            alpaca(binary, Checkout(words.alpaca_eval.resolve()), place, words.models, count)
        else:
            count.skip("AlpacaEval: no checkout is given")
        if words.arena_hard:
            arena_v01(binary, Checkout(words.arena_hard.resolve()), place, count)
            arena_v2(binary, Checkout(words.arena_hard.resolve()), place, count)
        else:
            count.skip("Arena-Hard: no checkout is given")
    for kind, apart in count.apart.items():
        print(f"length-controlled win rates and the tool's, solved {kind}: {apart:.6f} points apart at most")
    for line in count.differ:
        print(line)
    print(f"{count.agree} numbers agree, {len(count.differ)} differ, {count.skipped} skipped")
    sys.exit(1 if count.differ else 0)


if __name__ == "__main__":
    main()
