#!/usr/bin/env python3
"""Rewards from programs and servers that misbehave: 10,000 responses each, and what a call costs.

    salsa run recipes/arithmetic.yaml --out runs/arithmetic
    rewards.py --salsa target/release/salsa --run runs/arithmetic [--seed 1]

A run whose reward program (or server) crashes, sleeps, writes nonsense, NaN, too few or too many lines at random must
give the same bytes as one whose program behaves; so must one that is killed at random moments and resumed. Then the
time per response of a program that does nothing is compared with that of a reward inside the process.
"""
import argparse, hashlib, http.server, json, os, pathlib, random, subprocess, sys, tempfile, threading, time

PROGRAM = r'''
import json, os, random, sys, time
chance = float(sys.argv[1])
rng = random.Random(int.from_bytes(os.urandom(8), "big"))
def reward(asked): return 1.0 if chance < 0 else len(asked["response"]) % 7 / 7
for line in sys.stdin:
    if not line.strip(): continue
    asked = json.loads(line)
    good = json.dumps({"id": asked["id"], "reward": reward(asked)})
    if rng.random() < chance:
        which = rng.randrange(9)
        if which == 0: os._exit(3)
        if which == 1: os.kill(os.getpid(), 9)
        if which == 2: time.sleep(60)
        if which == 3: print("hello", flush=True); continue
        if which == 4: print(json.dumps({"id": asked["id"], "reward": float("nan")}), flush=True); continue
        if which == 5: continue
        if which == 6: print(good + "\n" + good, flush=True); continue
        if which == 7: print(json.dumps({"id": asked["id"] + 1, "reward": 5.0}), flush=True); continue
        if which == 8: sys.stdout.buffer.write(b"\xff\xfe\n"); sys.stdout.flush(); continue
    print(good, flush=True)
'''


def reward(text):
    return len(text) % 7 / 7


class Hostile(http.server.BaseHTTPRequestHandler):
    chance, rng, faults, constant = 0.0, random.Random(), 0, False

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        # The response is what the query has behind its prompt, up to the end of the turn.
        texts = [q[len(p):].split("<|")[0].strip() for q, p in zip(asked["query"], asked["prompts"])]
        rewards = [1.0 if self.constant else reward(text) for text in texts]
        body, status = json.dumps({"rewards": rewards}).encode(), 200
        if self.rng.random() < self.chance:
            Hostile.faults += 1
            which = self.rng.randrange(7)
            if which == 0: return self.connection.close()
            if which == 1: time.sleep(3)
            if which == 2: body, status = b"oops", 500
            if which == 3: body = b"<html>"
            if which == 4: body = json.dumps({"rewards": rewards[1:]}).encode()
            if which == 5: body = json.dumps({"rewards": rewards + [1.0]}).encode()
            if which == 6: body = b'{"rewards": [NaN' + b", 1" * (len(rewards) - 1) + b"]}"
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            pass

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--salsa", required=True)
    parser.add_argument("--run", required=True, type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    root = pathlib.Path(tempfile.mkdtemp(prefix="rewards-"))
    (root / "reward.py").write_text(PROGRAM)
    model, data = given.run.resolve() / "sft-a", given.run.resolve() / "world" / "prompts_train.jsonl"

    def command(name, rewards, episodes=10_000, batch=200, length=24, more=()):
        return [given.salsa, "grpo", "--model", str(model), "--dataset", str(data), "--output_dir", str(root / name),
                "--reference.kind", "none", "--kl_coef", "0", "--total_episodes", str(episodes), "--batch_size",
                str(batch), "--num_generations", "4", "--response_length", str(length), "--temperature", "1",
                "--learning_rate", "1e-4", "--per_device_train_batch_size", "200", "--rewards", json.dumps(rewards), *more]

    def digest(name):
        files = ["model.safetensors"]
        return hashlib.sha256(b"".join((root / name / file).read_bytes() for file in files)).hexdigest()[:16]

    def run(name, rewards, **keys):
        start = time.perf_counter()
        done = subprocess.run(command(name, rewards, **keys), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        retries = sum("retries)" in line for line in done.stderr.splitlines())
        return time.perf_counter() - start, retries

    def program(chance):
        return [{"kind": "command", "name": "length", "command": [sys.executable, str(root / "reward.py"), str(chance)],
                 "timeout": 5, "max_retries": 50}]

    run("good", program(0))
    # About one batch of 200 in three fails.
    _, retries = run("bad", program(0.002))
    print(f"program: 10,000 responses, {retries} failures, bytes equal: {digest('good') == digest('bad')}")
    assert digest("good") == digest("bad") and retries > 5

    kills = 0
    while True:
        child = subprocess.Popen(command("killed", program(0.002), more=("--save_steps", "3")),
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            code = child.wait(timeout=rng.uniform(4, 25))
            break
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
    print(f"program: killed {kills} times, ended {code}, bytes equal: {digest('good') == digest('killed')}")
    assert code == 0 and digest("good") == digest("killed")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    remote = [{"kind": "http", "url": f"http://127.0.0.1:{server.server_address[1]}/", "timeout": 2, "max_retries": 20,
               "batch_size": 50}]
    run("http-good", remote)
    Hostile.chance, Hostile.rng = 0.1, random.Random(given.seed)
    _, retries = run("http-bad", remote)
    print(f"server: 10,000 responses, {Hostile.faults} faults, {retries} sent again, "
          f"bytes equal: {digest('http-good') == digest('http-bad')}")
    assert digest("http-good") == digest("http-bad") and retries > 5
    print(f"the same reward by program and server: {digest('good') == digest('http-good')}")
    Hostile.chance, Hostile.constant = 0.0, True

    # What a call costs: the same run, of responses of one token, with the same reward inside the process.
    rounds, size = [], {"episodes": 20_000, "batch": 2_000, "length": 1}
    for i in range(3):
        inside, _ = run(f"inside-{i}", [{"kind": "regex", "pattern": ""}], **size)
        by_program, _ = run(f"program-{i}", program(-1), **size)
        by_server, _ = run(f"server-{i}", remote, **size)
        rounds.append(((by_program - inside) / 2e4 * 1e6, (by_server - inside) / 2e4 * 1e6))
    rounds = [sorted(column)[1] for column in zip(*rounds)]
    print(f"per response, median of 3: program {rounds[0]:.0f} us, server {rounds[1]:.0f} us (Python's own time included)")


main()
