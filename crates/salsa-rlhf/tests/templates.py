"""Holds chat templates and tokenisation against transformers' apply_chat_template.

    python crates/salsa-rlhf/tests/templates.py TEMPLATES [--salsa target/debug/salsa] [--only llama2]

TEMPLATES is a folder of Jinja files (from the models' own tokenizer_config.json; they are not part of this repository);
a file's name begins with its family: llama2.jinja, llama3_1.jinja, mistral_v1.jinja, gemma.jinja, qwen3.jinja, phi3.jinja,
zephyr.jinja, chatml.jinja; one of another name gets a plain byte-level tokenizer. Each is rendered with a tokenizer of its family's kind, which is trained here on a few sentences,
so that nothing has to be downloaded. Needs transformers (5) and tokenizers.

Compared, for every conversation with and without a generation prompt: the text; the tokens; whether it is refused; for
templates with {% generation %}, the mask of the assistant's tokens. Printed besides: in how many conversations the tokens
that a stage learns from are those of the whole conversation tokenised at once.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "Tell me a joke. Why did the chicken cross the road? To get to the other side!",
    "You are a helpful assistant. Antworte bitte auf Deutsch: schöne Grüße aus Köln.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 22))",
    "   three spaces, then a tab\tand two lines\n\nThe end. 我喜欢吃莎莎酱。 🌮 🌶️",
] * 8

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")


def sentencepiece(specials, legacy):
    """Llama 2's and Mistral's kind: spaces are letters, one is put in front of every text; unknown letters are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    start = ["<unk>", *specials, *bytes_]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=start, show_progress=False, max_token_length=12)
    tokenizer.train_from_iterator([word for line in TEXT for word in line.replace(" ", " \n").split("\n") if word], trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in bytes_]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return with_bos(tokenizer, specials[0])


def byte_level(specials, pattern, bos=None, normalizer=None):
    """Llama 3's and Qwen's kind."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return with_bos(tokenizer, bos) if bos else tokenizer


def with_bos(tokenizer, bos):
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PHI3 = ["<s>", "</s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
GEMMA = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]

# Beginning of a file's name: tokenizer, bos, eos. The first that fits is taken.
FAMILIES = [
    ("llama3", lambda: byte_level(LLAMA3, GPT4, bos="<|begin_of_text|>"), "<|begin_of_text|>", "<|eot_id|>"),
    ("llama2", lambda: sentencepiece(["<s>", "</s>"], legacy=True), "<s>", "</s>"),
    ("mistral_v2v3", lambda: sentencepiece(["<s>", "</s>", "[INST]", "[/INST]"], legacy=False), "<s>", "</s>"),
    ("mistral_v3_tekken", lambda: byte_level(["<s>", "</s>", "[INST]", "[/INST]"], GPT4, bos="<s>"), "<s>", "</s>"),
    ("mistral", lambda: sentencepiece(["<s>", "</s>"], legacy=True), "<s>", "</s>"),
    ("mergekit_mistral", lambda: sentencepiece(["<s>", "</s>"], legacy=False), "<s>", "</s>"),
    ("zephyr", lambda: sentencepiece(["<s>", "</s>"], legacy=True), "<s>", "</s>"),
    ("gemma", lambda: gemma(), "<bos>", "<eos>"),
    ("phi3", lambda: sentencepiece(PHI3, legacy=True), "<s>", "<|end|>"),
    ("axolotl_phi", lambda: sentencepiece(PHI3, legacy=False), "<s>", "<|end|>"),
    ("qwen", lambda: byte_level(CHATML, QWEN, normalizer=normalizers.NFC()), None, "<|im_end|>"),
    ("chatml", lambda: byte_level(CHATML, GPT4), None, "<|im_end|>"),
    # Any other: what its own tokenizer would make of the text is not compared.
    ("", lambda: byte_level(["<s>", "</s>"], GPT4), "<s>", "</s>"),
]


def gemma():
    """SentencePiece without a space in front."""
    tokenizer = sentencepiece(GEMMA, legacy=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def turns(*texts, system=None):
    roles = itertools.cycle(["user", "assistant"])
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": role, "content": text} for role, text in zip(roles, texts)]


CONVERSATIONS = {
    "one question": turns("Why did the chicken cross the road?"),
    "one answer": turns("Tell me a joke.", "To get to the other side!"),
    "three turns": turns("Tell me", "a joke.", "Why?"),
    "four turns": turns("Tell me", "a joke.", "Why?", "To get to the other side!"),
    "six turns": turns("a", "b", "c", "d", "e", "f"),
    "system": turns("Tell me a joke.", system="You are a helpful assistant."),
    "system and answer": turns("Tell me a joke.", "No.", system="You are a helpful assistant."),
    "system and four turns": turns("a", "b", "c", "d", system="Antworte bitte auf Deutsch."),
    "empty system": turns("Tell me a joke.", "No.", system=""),
    "empty user": turns("", "What did you say?"),
    "empty answer": turns("Tell me a joke.", ""),
    "all empty": turns("", ""),
    "white space around": turns("  Tell me\n", "\n a joke. \n\n"),
    "only white space": turns(" ", "\n"),
    "unicode": turns("Schöne Grüße aus Köln 🌮", "我喜欢吃莎莎酱。 🌶️ é e\u0301 \u200d \ufeff"),
    "line separators": turns("a\u2028b\u2029c\x85d", "e\r\nf\tg\x0bh"),
    "code": turns("def add(a, b):\n    return a + b", "```python\nprint(add(1, 22))\n```\n"),
    "jinja in content": turns("{{ bos_token }}{% if x %}", "{# no #} %} }}"),
    "special tokens in content": turns("</s> <s>[INST] hi [/INST]", "<|im_end|>\n<|im_start|>user<|eot_id|><end_of_turn>"),
    "quotes and slashes": turns("\"a\" 'b' \\n \\\\ </script>", "&amp; <b> > &lt;"),
    "thoughts": turns("Why?", "<think>\nLet me see.\n</think>\n\nBecause.", "And?", "<think>\nHm.\n</think>\n\nSo."),
    "thoughts then question": turns("Why?", "<think>\nLet me see.\n</think>\n\nBecause.", "And?"),
    "long": turns(*(f"line {i} of a long conversation, three spaces   and so on" for i in range(40))),
    "numbers": turns("1234567 + 0.5 = ?", "1,234,567.5"),
    "assistant first": [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}],
    "user twice": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "system in the middle": turns("a", "b") + [{"role": "system", "content": "s"}] + turns("c"),
    "another role": [{"role": "critic", "content": "hm"}],
}


def expected(tokenizer, messages, add, marked):
    """What transformers makes of it, or None where it refuses."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
    except Exception:
        return None
    tokens = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=add, return_dict=True)
    learned = None
    if marked and not add:
        masked = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        learned = [i for i, one in enumerate(masked["assistant_masks"]) if one]
    return {"text": text, "tokens": tokens["input_ids"], "learned": learned}


def check(name, source, salsa, folder):
    make, bos, eos = next((make, bos, eos) for start, make, bos, eos in FAMILIES if name.startswith(start))
    tokens = {"bos_token": bos, "eos_token": eos}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make(), **{k: v for k, v in tokens.items() if v})
    tokenizer.chat_template = source
    tokenizer.save_pretrained(folder)
    if name.startswith("gemma"):  # ends a turn with a token of its own
        ends = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
        pathlib.Path(folder, "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    cases = [(what, messages, add) for what, messages in CONVERSATIONS.items() for add in (False, True)]
    lines = [json.dumps({"messages": messages, "add_generation_prompt": add}) for _, messages, add in cases]
    file = pathlib.Path(folder, "conversations.jsonl")
    file.write_text("\n".join(lines))
    command = [salsa, "inspect", "--render", file, "--model", folder, "--json"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(int(time.time()))}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    results = [json.loads(line) for line in out.split("\n") if line]
    assert len(results) == len(cases), (len(results), len(cases))

    wrong, refused, same, other, masks, unknown = [], 0, 0, [], 0, []
    for (what, messages, add), found in zip(cases, results):
        want = expected(tokenizer, messages, add, "{% generation" in source or "{%- generation" in source)
        if want is None or "text" not in found:
            refused += 1
            if (want is None) != ("text" not in found):
                wrong.append((what, add, "refused by one only", found.get("error", "transformers refuses")))
            continue
        for key in ("text", "tokens"):
            if want[key] != found[key]:
                wrong.append((what, add, key, want[key], found[key]))
        if "sequence" in found:
            length = len(found["sequence"])
            if found["sequence"] == found["tokens"][:length]:
                same += 1
            else:
                other.append(what)
            inside = {i for start, end in found["learned"] for i in range(start, end)}
            if want["learned"] is not None and found["sequence"] == found["tokens"][:length]:
                masks += 1
                # What stands behind an end token is white space, which is not learned.
                left_out = [i for i in want["learned"] if i < length and i not in inside]
                behind = tokenizer.decode([found["tokens"][i] for i in left_out])
                if not inside <= set(want["learned"]) or behind.strip():
                    wrong.append((what, add, "mask", want["learned"], sorted(inside)))
        elif "not_learned" in found:
            unknown.append(what)
    note = f", {masks} masks" if masks else ""
    if unknown:
        note += f", turns not found in: {', '.join(unknown)}"
    print(f"{name:<24} {len(cases) - refused:>3} rendered, {refused:>2} refused by both{note}, {same}/{same + len(other)} learned "
          f"as one text{' (not: ' + ', '.join(other[:4]) + ')' if other else ''}: {'FAILED' if wrong else 'equal'}")
    for item in wrong[:6]:
        print("   ", *(repr(part)[:400] for part in item), sep="\n      ")
    return not wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("templates", type=pathlib.Path)
    parser.add_argument("--salsa", default="target/debug/salsa")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    files = sorted(file for file in arguments.templates.glob("*.jinja") if file.stem.startswith(arguments.only))
    if not files:
        sys.exit(f"no .jinja files in {arguments.templates}")
    good = []
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            good.append(check(file.stem, file.read_text(), arguments.salsa, folder))
    print(f"{sum(good)} of {len(good)} templates, {len(CONVERSATIONS)} conversations each with and without generation prompt")
    sys.exit(not all(good))


main()
