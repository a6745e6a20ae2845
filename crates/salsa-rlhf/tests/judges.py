"""Hold the counting of `salsa judge` against the tools' own scripts.

    python crates/salsa-rlhf/tests/judges.py --salsa BIN --fastchat DIR --arena-v01 DIR --arena-v2 DIR
    # in an environment with pandas, scikit-learn, tqdm, pyyaml, requests and torch; checkouts of lm-sys/FastChat (0e6d3e4
    # was used) and of lmarena/arena-hard-auto at its v0.1 (19412d7) and at its v2 (196f6b8)

Judgments are drawn at random in each tool's layout: grades, whole and half ones, with failures; pairs with every
combination of winners; games with every label and without one. Both programs count them.
- FastChat `show_result.py`, modes single, pairwise-baseline and pairwise-all: equal to the six decimals that it prints;
- Arena-Hard v0.1 `show_result.py`: scores equal to the decimal that it prints, of three models, a fit of scikit-learn
  there and a mean here; with `--style-control` within .1, which is the tolerance of its solver and of rounding; the ends
  of intervals within 3 points, four standard errors of two quantiles of 100 resamples each;
- Arena-Hard v2 `show_result.py`, by category: it prints the mean of 100 unseeded resamples, so scores within 1 point, four
  standard errors of that mean, and ends of intervals within 3.
"""
import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = ["model-a", "model-b", "model-c"]
LABELS = ["A>>B", "A>B", "A=B", "B>A", "B>>A", None]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def salsa(binary, place, protocol, judgments, *more):
    out = Path(tempfile.mkdtemp(dir=place)) / "out"
    files = "[" + ", ".join(str(path) for path in judgments) + "]"
    words = [binary, "judge", "--protocol", protocol, "--judgments", files, "--output_dir", out, *more]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def tool(script, place, *words):
    run = subprocess.run([sys.executable, script, *words], cwd=place, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def check(what, ours, theirs, tolerance):
    assert abs(ours - theirs) <= tolerance, f"{what}: {ours} here, {theirs} there"
    return 1


def singles(binary, fastchat, place, rng):
    rows = [
        {"question_id": question, "model": model, "judge": ["j", "single-v1"], "user_prompt": "", "judgment": "",
         "score": rng.choice([-1, 1, 5, 7, 7.5, 10]), "turn": turn, "tstamp": 1.0}
        for question in range(40) for model in MODELS for turn in (1, 2)
    ]
    path = write(place / "single.jsonl", rows)
    printed = tool(fastchat / "fastchat/llm_judge/show_result.py", place, "--input-file", path)
    models = salsa(binary, place, "mt_bench_single", [path])["models"]
    parts = dict(zip(("turn_1", "turn_2", "score"), re.split(r"#{10} .* #{10}", printed)[1:]))
    checks = 0
    for key, part in parts.items():
        for model in MODELS:
            theirs = float(re.search(rf"^{model}\s.*?([\d.]+)$", part, re.M)[1])
            checks += check(f"single {key} {model}", models[model][key], theirs, 5.1e-7)
    return checks


def pairs(binary, fastchat, place, rng):
    winners = ["model_1", "model_2", "tie", "error"]
    rows = [
        {"question_id": question, "model_1": one, "model_2": other, "g1_winner": rng.choice(winners),
         "g2_winner": rng.choice(winners), "judge": ["j", "pair-v2"], "g1_user_prompt": "", "g1_judgment": "",
         "g2_user_prompt": "", "g2_judgment": "", "turn": turn, "tstamp": 1.0}
        for question in range(40) for turn in (1, 2)
        for one, other in (("model-a", "model-b"), ("model-a", "model-c"), ("model-b", "model-c"))
    ]
    checks = 0
    for mode, baseline, kept in (
        ("pairwise-all", None, rows),
        ("pairwise-baseline", "model-c", [row for row in rows if row["model_2"] == "model-c"]),
    ):
        path = write(place / f"{mode}.jsonl", kept)
        words = ["--input-file", path, "--mode", mode] + (["--baseline-model", baseline] if baseline else [])
        printed = tool(fastchat / "fastchat/llm_judge/show_result.py", place, *words)
        more = ["--baseline", baseline] if baseline else []
        models = salsa(binary, place, "mt_bench_pair", [path], *more)["models"]
        lines = re.findall(r"^(model-\w)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([\d.]+)\s+([\d.]+)$", printed, re.M)
        assert {line[0] for line in lines} == set(models), (printed, list(models))
        for model, *numbers in lines:
            keys = ("wins", "losses", "ties", "win_rate", "loss_rate", "win_rate_adjusted")
            for key, theirs in zip(keys, numbers):
                checks += check(f"{mode} {key} {model}", models[model][key], float(theirs), 5.1e-7)
    return checks


def arena(binary, checkout, place, rng):
    bench = place / "data/arena-hard-v0.1"
    files = []
    for skill, model in zip((1.0, 2.0, 4.0), MODELS):
        weights = [1, skill, 2, skill, 1, 0.3]
        game = lambda: {"user_prompt": "", "judgment": "", "score": rng.choices(LABELS, weights)[0]}
        rows = [{"question_id": str(q), "model": model, "judge": "j", "games": [game(), game()]} for q in range(150)]
        for row in rows:  # the better model wins more often
            if rng.random() < (skill - 1) / 6:
                row["games"][0]["score"], row["games"][1]["score"] = "B>A", "A>B"
        files.append(write(bench / "model_judgment/j" / f"{model}.jsonl", rows))
    for model in MODELS + ["gpt-4-0314"]:
        metadata = lambda: {"token_len": rng.randint(50, 900), "header_count": {"h1": rng.randint(0, 3)},
                            "list_count": {"ordered": rng.randint(0, 9)}, "bold_count": {"**": rng.randint(0, 9)}}
        rows = [{"question_id": str(q), "answer_id": "", "model_id": model, "conv_metadata": metadata(),
                 "choices": [{"index": 0, "turns": [{"content": "", "token_len": 1}]}]} for q in range(150)]
        write(bench / "model_answer" / f"{model}.jsonl", rows)
    pattern = r"^(model-\w)\s+\| score:\s+([\d.]+)\s+\| 95% CI:\s+\(([-\d.]+), ([-\d.]+)\)"
    table = salsa(binary, place, "arena_hard_v0.1", files)["categories"]["arena-hard-v0.1"]
    lines = re.findall(pattern, tool(checkout / "show_result.py", place, "--judge-name", "j"), re.M)
    assert len(lines) == 3, lines
    checks = 0
    for model, score, low, high in lines:
        ours = table["models"][model]
        checks += check(f"v0.1 {model}", ours["score"], float(score), 0.0501)
        for end, theirs in zip(ours["tool_interval_95"], (low, high)):
            checks += check(f"v0.1 interval of {model}", end - ours["score"], float(theirs), 3)
    answers = {model: bench / "model_answer" / f"{model}.jsonl" for model in MODELS + ["gpt-4-0314"]}
    styled = salsa_styled(binary, place, files, answers)
    lines = re.findall(pattern, tool(checkout / "show_result.py", place, "--judge-name", "j", "--style-control"), re.M)
    assert len(lines) == 3, lines
    for model, score, *_ in lines:
        checks += check(f"v0.1 styled {model}", styled[model]["score"], float(score), 0.1)
    return checks


def arena_v2(binary, checkout, place, rng):
    categories = ("hard_prompt", "creative_writing")
    files = []
    for skill, model in zip((1.0, 2.0, 4.0), MODELS):
        game = lambda: {"score": rng.choices(LABELS, [1, skill, 2, skill, 1, 0.3])[0], "judgment": {"answer": ""},
                        "prompt": []}
        rows = [{"uid": f"{category}-{q}", "model": model, "category": category, "judge": "j", "games": [game(), game()]}
                for category in categories for q in range(150)]
        files.append(write(place / "data/arena-hard-v2.0/model_judgment/j" / f"{model}.jsonl", rows))
    found = salsa(binary, place, "arena_hard_v2", files)["categories"]
    checks = 0
    for category in categories:
        printed = tool(checkout / "show_result.py", place, "-j", "j", "-c", category)
        lines = re.findall(r"^\d+\s+(model-\w)\s+([\d.]+)\s+\((-?[\d.]+) / \+(-?[\d.]+)\)", printed, re.M)
        assert len(lines) == 3, printed
        for model, score, low, high in lines:
            ours = found[category]["models"][model]
            checks += check(f"v2 {category} {model}", ours["score"], float(score), 1.05)
            for end, theirs in zip(ours["tool_interval_90"], (float(low), float(high))):
                checks += check(f"v2 interval of {category} {model}", end - ours["score"], theirs, 3)
    return checks


def salsa_styled(binary, place, files, answers):
    """Style control needs answers, so the judgments are read as recorded ones of a run: every prompt is empty."""
    config = place / "judge_config.yaml"
    config.write_text('system_prompt: ""\nprompt_template: [""]\n')
    questions = write(place / "question.jsonl", [{"question_id": str(q), "turns": [{"content": ""}]} for q in range(150)])
    for path in files:  # a judgment that is empty is none; its label is what is read
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            for game in row["games"]:
                game["judgment"] = f"[[{game['score']}]]" if game["score"] else "no label"
        write(path, rows)
    given = "{" + ", ".join(f"{model}: {path}" for model, path in answers.items()) + "}"
    found = salsa(binary, place, "arena_hard_v0.1", files, "--questions", questions, "--templates", config, "--answers",
                  given, "--transport", "recorded", "--judge_model", "j", "--style_control", "compat")
    return found["categories"]["arena-hard-v0.1"]["style_controlled"]["models"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--salsa", required=True, type=Path)
    parser.add_argument("--fastchat", required=True, type=Path)
    parser.add_argument("--arena-v01", required=True, type=Path)
    parser.add_argument("--arena-v2", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    words = parser.parse_args()
    binary = words.salsa.resolve()
    for seed in range(words.seeds):
        with tempfile.TemporaryDirectory() as place:
            place, rng = Path(place), random.Random(seed)
            checks = singles(binary, words.fastchat.resolve(), place, rng)
            checks += pairs(binary, words.fastchat.resolve(), place, rng)
            checks += arena(binary, words.arena_v01.resolve(), place, rng)
            checks += arena_v2(binary, words.arena_v2.resolve(), place, rng)
            print(f"seed {seed}: {checks} numbers agree")


if __name__ == "__main__":
    main()
