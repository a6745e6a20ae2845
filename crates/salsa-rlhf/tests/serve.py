"""Hold `salsa serve` against the official client of OpenAI's protocol, and put it under load.

    python crates/salsa-rlhf/tests/serve.py --salsa BIN                    # in an environment with openai (3.57 was used)
    python crates/salsa-rlhf/tests/serve.py --salsa BIN --minutes 10       # the long form of the load
    python crates/salsa-rlhf/tests/serve.py --salsa BIN --model DIR        # a model of one's own under load

Makes a small model with `salsa run`, serves it, and checks chats, streams, log-probs, several choices, stop texts and
errors through the client. The load: clients that ask, stream and leave at random; no error may come, the resident size
must stay flat, and replies must be the same every time. Then the same requests as lines of `salsa generate`, for the
throughput. Everything is asked of 127.0.0.1.
"""
import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.pop(0)

import openai

RECIPE = """
name: tiny
out: out
seed: 1
stages:
  world: {kind: kitchen, pretrain: 400, sft: 200, preferences: 200, prompts_train: 32, prompts_validation: 8,
          prompts_test: 8, prompts_ood: 8}
  base: {kind: pretrain, dataset: "${stages.world}/pretrain.jsonl", vocab_size: 512, hidden_size: 128,
         num_hidden_layers: 4, num_attention_heads: 4, max_position_embeddings: 512, max_length: 128, max_steps: 40}
  sft: {kind: sft, model: base, dataset: "${stages.world}/sft.jsonl", max_steps: 40}
"""
PROMPTS = ["What can I cook with eggs?", "Rice and beans, please.", "A quick dinner for two.", "Soup without onions?"]


class Server:
    """A running `salsa serve`."""

    def __init__(self, salsa, words):
        self.process = subprocess.Popen([salsa, "serve", "--port", "0", *words], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            found = re.search(r" at (http://127\.0\.0\.1:\d+)/v1", line)
            if found:
                self.url = found.group(1)
                break
        else:
            sys.exit("the server ended")

    def metric(self, name):
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.M).group(1))

    def end(self):
        self.process.terminate()
        code = self.process.wait(timeout=60)
        assert code == 0, f"the server ended with {code}"


def refused(call, kind, **expected):
    """The error that a call must raise."""
    try:
        call()
    except kind as error:
        for name, value in expected.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def checks(client, model):
    """What a user of the client relies on."""
    assert [entry.id for entry in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model
    ask = dict(model=model, messages=[{"role": "user", "content": PROMPTS[0]}], max_tokens=24, seed=1)
    chat, text = client.chat.completions.create, client.completions.create

    whole = chat(**ask)
    assert whole.choices[0].message.role == "assistant" and whole.choices[0].finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert chat(**ask).choices == whole.choices, "the same seed gives the same reply"
    assert any(chat(**{**ask, "seed": seed}).choices != whole.choices for seed in range(2, 6))

    pieces, usage = [], None
    for chunk in chat(**ask, stream=True, stream_options={"include_usage": True}):
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == whole.choices[0].message.content and usage == whole.usage

    told = chat(**{**ask, "temperature": 0}, logprobs=True, top_logprobs=3).choices[0]
    entries = told.logprobs.content
    assert len(entries) > 0
    for entry in entries:
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob == entry.logprob
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    said = b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace")
    assert said.startswith(told.message.content.rstrip("\ufffd")), (said, told.message.content)

    several = chat(**ask, n=3).choices
    assert [choice.index for choice in several] == [0, 1, 2] and several[0].message == whole.choices[0].message
    streamed = ["", "", ""]
    for chunk in chat(**ask, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == [choice.message.content for choice in several]

    # Some models end at once after a text without a template.
    greedy = {prompt: text(model=model, prompt=prompt, max_tokens=40, temperature=0).choices[0] for prompt in PROMPTS}
    prompt, full = max(greedy.items(), key=lambda item: len(item[1].text))
    stop = full.text[len(full.text) // 2:][:3]
    cut = text(model=model, prompt=prompt, max_tokens=40, temperature=0, stop=[stop]).choices[0]
    assert cut.text == full.text[:full.text.index(stop)] and cut.finish_reason == "stop"
    echoed = text(model=model, prompt=[PROMPTS[0], PROMPTS[1]], max_tokens=1, echo=True, logprobs=1).choices
    assert [choice.text.startswith(prompt) for choice, prompt in zip(echoed, PROMPTS)] == [True, True]
    assert echoed[0].logprobs.token_logprobs[0] is None

    error = refused(lambda: chat(**ask, frequency_penalty=1), openai.BadRequestError, param="frequency_penalty")
    assert "frequency_penalty" in error.message
    refused(lambda: chat(**{**ask, "model": "nobody"}), openai.NotFoundError, code="model_not_found")
    refused(lambda: chat(**{**ask, "max_tokens": 10**6}), openai.BadRequestError, code="context_length_exceeded")
    refused(lambda: chat(**ask, extra_body={"wibble": 1}), openai.BadRequestError, param="wibble")


def keys(salsa, directory, model):
    """A key is asked for, and the client sends it."""
    (directory / "keys").write_text("secret\n")
    server = Server(salsa, [f"m={model}", "--api-key-file", str(directory / "keys")])
    good, bad = (openai.OpenAI(base_url=f"{server.url}/v1", api_key=key) for key in ("secret", "other"))
    assert good.models.list().data
    refused(lambda: bad.models.list(), openai.AuthenticationError, code="invalid_api_key")
    server.end()


async def one(client, ask, first, tokens, draw):
    """One request: whole, streamed, or streamed and left in the middle. Returns its text, if it was read to the end."""
    began, kind = time.perf_counter(), draw.random()
    if kind < .3:
        reply = await client.chat.completions.create(**ask)
        tokens.append(reply.usage.completion_tokens)
        return reply.choices[0].message.content
    stream = await client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    text, seen, leave = "", 0, draw.randrange(40) if kind < .6 else None
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            if seen == 0:
                first.append(time.perf_counter() - began)
            seen += 1
            text += chunk.choices[0].delta.content
        if chunk.usage:
            tokens.append(chunk.usage.completion_tokens)
        if leave is not None and seen > leave:
            await stream.close()
            return None
    return text


async def load(server, model, clients, seconds):
    """Clients that ask, stream and leave at random; every reply to the same request must be the same."""
    first, tokens, errors, replies, sizes = [], [], [], {}, []
    end = time.monotonic() + seconds

    async def person(number):
        draw = random.Random(number)
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=600)
        while time.monotonic() < end:
            prompt, seed = draw.choice(PROMPTS), draw.randrange(8)
            ask = dict(model=model, messages=[{"role": "user", "content": prompt}], max_tokens=64, seed=seed)
            try:
                text = await one(client, ask, first, tokens, draw)
            except Exception as error:
                errors.append(repr(error))
                continue
            if text is not None and replies.setdefault((prompt, seed), text) != text:
                errors.append(f"another reply to {prompt!r} with seed {seed}")
        await client.close()

    async def watch():
        while time.monotonic() < end:
            sizes.append(await asyncio.to_thread(server.metric, "process_resident_memory_bytes"))
            await asyncio.sleep(max(.5, seconds / 100))

    began = time.perf_counter()
    await asyncio.gather(*(person(number) for number in range(clients)), watch())
    took = time.perf_counter() - began
    assert not errors, errors[:5]
    for _ in range(200):
        if server.metric("salsa_sequences_running") + server.metric("salsa_sequences_waiting") == 0:
            break
        time.sleep(.05)
    else:
        raise AssertionError("something still runs after all clients left")
    settled, last = sizes[len(sizes) // 4], statistics.mean(sizes[-max(1, len(sizes) // 10):])
    quantiles = statistics.quantiles(first, n=100)
    report = {"clients": clients, "seconds": round(took, 1), "replies": len(tokens), "left": "at random",
              "tokens_per_second": round(sum(tokens) / took, 1),
              "first_token_seconds": {"p50": round(quantiles[49], 4), "p99": round(quantiles[98], 4)},
              "resident_mib": {"after a quarter": round(settled / 2**20, 1), "at the end": round(last / 2**20, 1)}}
    print(json.dumps(report))
    # A server that keeps something of every request grows without end; pools of memory settle.
    assert last < settled * 1.1 + 16 * 2**20, report


async def throughput(server, salsa, directory, path, model, clients):
    """The same requests as lines of `salsa generate`."""
    count, new = 4 * clients, 64
    prompts = [f"{PROMPTS[number % len(PROMPTS)]} {number}" for number in range(count)]
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0, timeout=600)
    lock = asyncio.Semaphore(clients)

    async def ask(prompt):
        async with lock:
            messages = [{"role": "user", "content": prompt}]
            reply = await client.chat.completions.create(model=model, messages=messages, max_tokens=new, temperature=0)
            return reply.choices[0].message.content, reply.usage.completion_tokens

    began = time.perf_counter()
    replies = await asyncio.gather(*map(ask, prompts))
    served = time.perf_counter() - began
    await client.close()
    rows = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    (directory / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["generate", "--model", path, "--input", "in.jsonl", "--output", "out.jsonl", "--max-new-tokens", str(new),
             "--temperature", "0", "--batch-size", "32"]
    began = time.perf_counter()
    subprocess.run([salsa, *words], check=True, capture_output=True, cwd=directory)
    offline = time.perf_counter() - began
    rows = [json.loads(line) for line in (directory / "out.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == [text for text, _ in replies], "served replies are those of generate"
    tokens = sum(count for _, count in replies)
    print(json.dumps({"requests": count, "tokens": tokens, "served_tokens_per_second": round(tokens / served, 1),
                      "generate_tokens_per_second": round(tokens / offline, 1)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--salsa", required=True, help="the program")
    parser.add_argument("--model", help="a language model with a chat template; without it a small one is made")
    parser.add_argument("--minutes", type=float, default=.25, help="how long the load lasts")
    parser.add_argument("--clients", type=int, default=64)
    arguments = parser.parse_args()
    assert 1 <= arguments.clients <= 256 and arguments.minutes <= 30, "the load is bounded"
    salsa = str(Path(arguments.salsa).resolve())
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        model = arguments.model and str(Path(arguments.model).resolve())
        if not model:
            (directory / "r.yaml").write_text(RECIPE)
            subprocess.run([salsa, "run", "r.yaml"], check=True, capture_output=True, cwd=directory)
            model = str(directory / "out/sft")
        # Clients of a busy machine may stand still for a while: that is not what is tested here.
        server = Server(salsa, [f"m={model}", "--max-model-len", "256", "--client-timeout", "600"])
        try:
            checks(openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0), "m")
            keys(salsa, directory, model)
            asyncio.run(throughput(server, salsa, directory, model, "m", arguments.clients))
            asyncio.run(load(server, "m", arguments.clients, 60 * arguments.minutes))
            server.end()
        finally:
            server.process.kill()
    print("all checks passed")


if __name__ == "__main__":
    main()
