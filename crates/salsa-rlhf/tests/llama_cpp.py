#!/usr/bin/env python3
"""Holds `salsa convert` against transformers, and `salsa export` against llama.cpp.

    pip install torch transformers gguf          and a build of llama.cpp (the npm package node-llama-cpp ships one)
    llama_cpp.py MODEL.gguf --salsa target/release/salsa --llama FOLDER_OF_LIBLLAMA --texts texts.txt

1. converts the file as float32 and compares every weight with transformers' `from_pretrained(gguf_file=)`, bit for bit;
2. exports the checkpoint as f32, f16, q8_0, q4_0 and q4_k_m, and compares the bytes of every tensor with those that
   `llama_model_quantize` makes of the f32 file;
3. compares tokens of the texts: the checkpoint's in transformers, and llama.cpp's of the exported file;
4. compares greedy answers of transformers (float32) and of llama.cpp (f16).

--skip-transformers leaves out 1, for files that transformers does not read.
"""
import argparse
import ctypes as C
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TYPES = {"f16": 1, "q8_0": 7, "q4_0": 2, "q4_k_m": 15}
PROMPTS = ["Once upon a time", "The capital of France is", "def fibonacci(n):"]
NEW = 16


class Parameters(C.Structure):
    """Larger than any structure of parameters that llama.cpp passes by value."""
    _fields_ = [("words", C.c_int32 * 128)]


class Batch(C.Structure):
    _fields_ = [("count", C.c_int32), ("token", C.POINTER(C.c_int32)), ("embd", C.c_void_p),
                ("pos", C.POINTER(C.c_int32)), ("seqs", C.POINTER(C.c_int32)),
                ("seq", C.POINTER(C.POINTER(C.c_int32))), ("logits", C.POINTER(C.c_int8))]


class Llama:
    """The C functions of libllama that are needed here."""

    def __init__(self, folder):
        def load(start):
            path = sorted(folder.glob(start + "*.so*"))[0]
            return C.CDLL(str(path), mode=C.RTLD_GLOBAL)
        load("libggml-base")
        ggml, self.lib = load("libggml."), load("libllama.")
        ggml.ggml_backend_load_all_from_path(str(folder).encode())
        self.log = C.CFUNCTYPE(None, C.c_int, C.c_char_p, C.c_void_p)(lambda *_: None)
        self.lib.llama_log_set(self.log, None)
        for name in ["model_default_params", "context_default_params", "model_quantize_default_params"]:
            getattr(self.lib, "llama_" + name).restype = Parameters
        for name in ["model_load_from_file", "init_from_model", "model_get_vocab"]:
            getattr(self.lib, "llama_" + name).restype = C.c_void_p
        self.lib.llama_batch_init.restype = Batch
        self.lib.llama_get_logits_ith.restype = C.POINTER(C.c_float)
        self.lib.llama_backend_init()

    def quantize(self, source, target, kind):
        parameters = self.lib.llama_model_quantize_default_params()
        parameters.words[0], parameters.words[1] = 2, kind
        assert self.lib.llama_model_quantize(str(source).encode(), str(target).encode(), C.byref(parameters)) == 0

    def model(self, path):
        model = C.c_void_p(self.lib.llama_model_load_from_file(str(path).encode(), self.lib.llama_model_default_params()))
        assert model, f"llama.cpp does not load {path}"
        return model

    def tokens(self, model, text):
        vocab, data = C.c_void_p(self.lib.llama_model_get_vocab(model)), text.encode()
        out = (C.c_int32 * (len(data) + 8))()
        count = self.lib.llama_tokenize(vocab, data, len(data), out, len(out), C.c_bool(True), C.c_bool(True))
        return list(out[:count])

    def answers(self, model, prompts, new):
        parameters = self.lib.llama_context_default_params()
        parameters.words[0] = parameters.words[1] = 256
        vocab = self.lib.llama_vocab_n_tokens(C.c_void_p(self.lib.llama_model_get_vocab(model)))
        batch, answers = self.lib.llama_batch_init(256, 0, 1), []
        for prompt in prompts:
            context, answer, at = C.c_void_p(self.lib.llama_init_from_model(model, parameters)), [], 0
            while len(answer) < new:
                step = answer[-1:] or prompt
                batch.count = len(step)
                for i, token in enumerate(step):
                    batch.token[i], batch.pos[i], batch.seqs[i] = token, at + i, 1
                    batch.seq[i][0], batch.logits[i] = 0, i + 1 == len(step)
                assert self.lib.llama_decode(context, batch) == 0
                at += len(step)
                logits = np.ctypeslib.as_array(self.lib.llama_get_logits_ith(context, len(step) - 1), (vocab,))
                answer.append(int(logits.argmax()))
            answers.append(answer)
            self.lib.llama_free(context)
        return answers


def run(*words):
    subprocess.run([str(word) for word in words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def weights(file, checkpoint):
    """Weights that differ from transformers'."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    theirs = model.state_dict()
    ours = load_file(checkpoint / "model.safetensors")
    missing = set(theirs) - set(ours) - {"lm_head.weight"}
    bits = lambda tensor: tensor.numpy().view(np.uint32)
    return sorted(missing) + [name for name in ours if not np.array_equal(bits(ours[name]), bits(theirs[name]))]


def tensors(ours, theirs):
    """Tensors of two files that differ in type or bytes."""
    from gguf import GGUFReader
    read = lambda path: {one.name: (one.tensor_type, one.data.tobytes()) for one in GGUFReader(path).tensors}
    ours, theirs = read(ours), read(theirs)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--salsa", required=True)
    parser.add_argument("--llama", type=pathlib.Path, required=True)
    parser.add_argument("--texts", type=pathlib.Path, action="append", default=[])
    parser.add_argument("--skip-transformers", action="store_true")
    options = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer
    import torch
    faults, llama = 0, Llama(options.llama)

    def say(what, wrong):
        nonlocal faults
        faults += len(wrong)
        print(f"{what}: {'equal' if not wrong else f'{len(wrong)} differ, {wrong[:3]}'}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        checkpoint, exact = folder / "checkpoint", folder / "f32.gguf"
        run(options.salsa, "convert", options.file, "--output", checkpoint, "--dtype", "float32")
        if not options.skip_transformers:
            say("weights, transformers", weights(options.file, checkpoint))
        run(options.salsa, "export", checkpoint, "--gguf", exact, "--type", "f32")
        for name, kind in TYPES.items():
            ours, theirs = folder / f"{name}.gguf", folder / "theirs.gguf"
            run(options.salsa, "export", checkpoint, "--gguf", ours, "--type", name)
            llama.quantize(exact, theirs, kind)
            say(f"tensors, {name}", tensors(ours, theirs))
        model, tokenizer = llama.model(folder / "f16.gguf"), AutoTokenizer.from_pretrained(checkpoint)
        for path in options.texts:
            text = path.read_text(encoding="utf-8")
            pieces = [text[at:at + 2000] for at in range(0, min(len(text), 200_000), 2000)]
            own = lambda piece: tokenizer(piece)["input_ids"]
            say(f"tokens, {path.name}", [piece[:40] for piece in pieces if own(piece) != llama.tokens(model, piece)])
        prompts = [llama.tokens(model, prompt) for prompt in PROMPTS]
        network = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        expected = [network.generate(torch.tensor([prompt]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
                    [0, len(prompt):].tolist() for prompt in prompts]
        answers = llama.answers(model, prompts, NEW)
        say("greedy answers", [prompt for prompt, a, b in zip(PROMPTS, expected, answers) if a != b])
    sys.exit(faults > 0)


main()
