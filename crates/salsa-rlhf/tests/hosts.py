"""Hosts apart: `salsa` on two network namespaces that share nothing but a slow link, which then is cut.

    python crates/salsa-rlhf/tests/hosts.py --salsa BIN --mpi DIR [DIR …]    # DIR: the folder of an mpiexec; as root

Each namespace has its own address and host name; the link between them has a limit on its rate and drops packets when
its queue is full (and delays them, where the kernel can). For every MPI: each operation with its bytes checked, a model
of the same bytes as by one process, and the link cut in the middle of a run: every process must end within the deadline,
and say which process on which host it was waiting for. Says so and ends with 0 where namespaces cannot be made.
"""
import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = {"a": "10.77.0.1", "b": "10.77.0.2"}
DEADLINE = 6
AGENT = """#!/bin/sh
# What ssh would do: agent [OPTIONS] HOST COMMAND …
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
[ "$host" = 10.77.0.1 ] && side=a || side=b
exec ip netns exec NAME-$side unshare --uts sh -c "hostname NAME-$side; $*"
"""
RANK = """#!/bin/sh
# A process whose errors have a file of their own: those of the other side do not come over a link that is cut.
exec "$@" 2>>DIR/stderr.${OMPI_COMM_WORLD_RANK:-$PMI_RANK}
"""
MODEL = ("pretrain --dataset texts.txt --vocab_size 300 --hidden_size 64 --num_hidden_layers 2 --num_attention_heads 2 "
         "--max_position_embeddings 64 --max_length 32 --max_steps 6 --per_device_train_batch_size 8 --gradient_units 4")


def run(words, **more):
    return subprocess.run(words, text=True, capture_output=True, **more)


class Link:
    """Two namespaces and the link between them."""

    def __init__(self):
        self.name = f"salsa{os.getpid()}"

    def __enter__(self):
        for side in SIDES:
            self.must("ip", "netns", "add", f"{self.name}-{side}")
        self.must("ip", "link", "add", "wire", "netns", f"{self.name}-a", "type", "veth", "peer", "name", "wire",
                  "netns", f"{self.name}-b")
        shaped = []
        for side, address in SIDES.items():
            self.ip(side, "addr", "add", f"{address}/24", "dev", "wire")
            self.ip(side, "link", "set", "lo", "up")
            self.ip(side, "link", "set", "wire", "up")
            for kind in (["netem", "delay", "2ms", "loss", "0.5%"], ["tbf", "rate", "200mbit", "burst", "32kb", "limit", "96kb"]):
                if run(["tc", "-n", f"{self.name}-{side}", "qdisc", "add", "dev", "wire", "root", *kind]).returncode == 0:
                    shaped.append(" ".join(kind))
                    break
        while any("state UP" not in run(["ip", "-n", f"{self.name}-{side}", "link", "show", "wire"]).stdout for side in SIDES):
            time.sleep(0.05)
        print("link:", shaped[0] if shaped else "as it is: this kernel has neither netem nor tbf")
        return self

    def __exit__(self, *_):
        for side in SIDES:
            run(["ip", "netns", "del", f"{self.name}-{side}"])

    def must(self, *words):
        done = run(words)
        if done.returncode:
            raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")

    def ip(self, side, *words):
        self.must("ip", "-n", f"{self.name}-{side}", *words)


class Mpi:
    """An MPI whose launcher starts processes on both sides."""

    def __init__(self, folder, link, place):
        self.folder, self.link, self.place = Path(folder).resolve(), link, place
        version = run([self.folder / "mpiexec", "--version"]).stdout
        self.is_open_mpi = "Open MPI" in version or "OpenRTE" in version
        self.is_prte = self.is_open_mpi and run([self.folder / "prte", "--version"]).returncode == 0 \
            if (self.folder / "prte").exists() else False
        self.agent = place / "agent.sh"
        for path, text in ((self.agent, AGENT.replace("NAME", link.name)), (place / "rank.sh", RANK.replace("DIR", str(place)))):
            path.write_text(text)
            path.chmod(0o755)

    def words(self, count):
        if not self.is_open_mpi:
            return ["-launcher", "ssh", "-launcher-exec", self.agent, "-hosts", ",".join(SIDES.values()), "-n", count]
        agent, network = ("plm_ssh_agent", "prte_if_include") if self.is_prte else ("plm_rsh_agent", "oob_tcp_if_include")
        launcher = "--prtemca" if self.is_prte else "--mca"
        return ["--allow-run-as-root", "--host", ",".join(f"{address}:{count}" for address in SIDES.values()), "--map-by", "node",
                "--bind-to", "none", launcher, agent, self.agent, launcher, network, "10.77.0.0/24", "--mca", "pml", "ob1",
                "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "10.77.0.0/24", "-n", count]

    def start(self, count, salsa, words):
        words = [str(word) for word in (self.folder / "mpiexec", *self.words(count), self.place / "rank.sh", salsa, *words)]
        first = f"{self.link.name}-a"
        command = ["ip", "netns", "exec", first, "unshare", "--uts", "sh", "-c", 'hostname $0; exec "$@"', first, *words]
        # Two namespaces on one machine could talk through its memory: TCP alone.
        more = {"PATH": f"{self.folder}:{os.environ['PATH']}", "UCX_TLS": "tcp,self", "SALSA_DEVICE": "cpu",
                "SALSA_COMM_TIMEOUT": str(DEADLINE), "RAYON_NUM_THREADS": "1", "HOME": os.environ.get("HOME", "/root")}
        for file in self.place.glob("stderr.*"):
            file.unlink()
        return subprocess.Popen(command, cwd=self.place, env=os.environ | more, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)

    def must(self, count, salsa, words):
        process = self.start(count, salsa, words)
        output = process.communicate(timeout=300)[0]
        if process.returncode:
            sys.exit(f"{self.folder}: {' '.join(words)}: {output}{self.errors()}")
        return output + "".join(self.errors().values())

    def errors(self):
        return {file.suffix[1:]: file.read_text() for file in sorted(self.place.glob("stderr.*"))}


def check(mpi, salsa, alone):
    name = mpi.link.name
    said = mpi.must(4, salsa, ["bench", "comm", "--bytes", "300000", "--repeat", "3"])
    assert f"2 on {name}-a, 2 on {name}-b" in said, said
    print("  every operation carries every byte")
    for count in (2, 4):
        out = mpi.place / f"on-{count}"
        mpi.must(count, salsa, [*MODEL.split(), "--output_dir", str(out)])
        assert digest(out) == alone, f"{count} processes: another model"
    print("  2 and 4 processes make the model of one:", alone[:16])

    process = mpi.start(4, salsa, ["bench", "comm", "--bytes", "100000", "--repeat", "1000000"])
    time.sleep(5)
    assert process.poll() is None, process.communicate()[0]
    mpi.link.ip("a", "link", "set", "wire", "down")
    start = time.monotonic()
    mine = processes(salsa, mpi.place)
    assert len(mine) == 4, mine
    while mine and time.monotonic() - start < DEADLINE + 30:
        time.sleep(0.1)
        mine = [pid for pid in mine if Path(f"/proc/{pid}").exists() and "Z" != state(pid)]
    seconds = time.monotonic() - start
    mpi.link.ip("a", "link", "set", "wire", "up")
    for pid in mine:
        os.kill(pid, 9)
    assert not mine, f"{len(mine)} processes still wait after {seconds:.0f} s: {mpi.errors()}"
    process.wait(timeout=60)
    lines = [line for text in mpi.errors().values() for line in text.splitlines() if line.startswith("error: process")]
    for line in lines:
        print("   ", line)
    for side, other in (("a", "b"), ("b", "a")):
        told = [line for line in lines if f" on {name}-{side}: " in line and f" on {name}-{other} " in line]
        assert told, f"nobody on {side} has named the other side: {mpi.errors()}"
    assert process.returncode, "the launcher says that all is well"
    print(f"  link cut: all ended after {seconds:.1f} s (deadline {DEADLINE} s), exit code {process.returncode}")


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def processes(salsa, place):
    """The processes of the program that work in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").resolve() == place and (entry / "exe").resolve() == salsa:
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def digest(out):
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--salsa", required=True)
    arguments.add_argument("--mpi", nargs="+", required=True)
    given = arguments.parse_args()
    salsa = Path(given.salsa).resolve()
    with tempfile.TemporaryDirectory() as place:
        place = Path(place).resolve()
        (place / "texts.txt").write_text("".join(f"Line {i} of a short text about salsa.\n" for i in range(200)))
        done = run([salsa, *MODEL.split(), "--output_dir", "alone"], cwd=place, env=os.environ | {"SALSA_DEVICE": "cpu"})
        assert done.returncode == 0, done.stderr
        link = Link()
        try:
            link.__enter__()
        except OSError as error:
            link.__exit__()
            print(f"skipped: network namespaces cannot be made here: {error}")
            return
        try:
            for folder in given.mpi:
                print(folder)
                check(Mpi(folder, link, place), salsa, digest(place / "alone"))
                for count in (2, 4):
                    run(["rm", "-r", str(place / f"on-{count}")])
        finally:
            link.__exit__()
    print("all as promised")


if __name__ == "__main__":
    main()
