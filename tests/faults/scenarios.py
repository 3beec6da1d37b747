"""The faults. Each really happens, to real processes; afterwards the run must be what it would have been."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
from harness import (
    EVERY,
    STEPS,
    Ground,
    Trial,
    digest,
    fault,
    lost_steps,
    ranks_of,
    rows,
    saved_step,
    small_disk,
    step_of,
    until,
    without_privilege,
)

ONE_FILE = "shard-00001-model-00001-of-00001.safetensors"


@fault("kill -9 of a run")
def kill_run(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    process, at = ground.under_way(run, chance)
    time.sleep(chance.uniform(0, 0.05))
    process.kill()
    lost = lost_steps(run)
    ground.finish(run)
    ground.same_bytes(run)
    return Trial(lost, f"killed in step {at}")


@fault("kill -9 of a rank, restarted by torchrun")
def kill_rank(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    process, at = ground.under_way(run, chance, ranks=2, restarts=2)
    victim = chance.choice(ranks_of(run))
    os.kill(victim, signal.SIGKILL)
    lost = lost_steps(run)
    process.ends(0)
    ground.same_losses(run)
    return Trial(lost, f"killed in step {at}")


@fault("kill -9 of a rank on one of two nodes")
def kill_rank_of_a_node(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    """Two torchruns, as on two machines, whose counts of restarts then differ."""
    run = folder / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:{free.getsockname()[1]} --rdzv-id=7"
    nodes = [ground.pretrain(run, ranks=1, restarts=3, meeting=meeting) for _ in range(2)]
    at = chance.randrange(1, STEPS - 10)
    until(lambda: step_of(run) >= at, nodes[0])
    os.kill(chance.choice(ranks_of(run)), signal.SIGKILL)
    lost = lost_steps(run)
    for node in nodes:
        node.ends(0)
    ground.same_losses(run)
    return Trial(lost, f"killed in step {at}")


@fault("SIGTERM, SIGUSR1 or SIGINT at any phase")
def signal_any_time(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run, number = folder / "run", chance.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
    process = ground.pretrain(run)
    moment = chance.choice(["start", "loop", "end"])
    if moment == "start":
        time.sleep(chance.uniform(0.2, 4))
    else:
        at = chance.randrange(1, STEPS) if moment == "loop" else STEPS
        until(lambda: step_of(run) >= at, process)
    process.signal(number)
    # Before the program has set its handlers the system ends it, and nothing has begun; while it loads, SIGINT is 130.
    process.ends(0, 75, 130, -number)
    lost = lost_steps(run)
    ground.finish(run)
    ground.same_bytes(run)
    return Trial(lost, f"{number.name}, {moment}")


@fault("SIGTERM during a save")
def signal_in_save(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    process = ground.pretrain(run)
    at = EVERY * chance.randrange(1, STEPS // EVERY - 1)
    until(lambda: step_of(run) >= at and any((run / "checkpoints").glob(".step-*")), process)
    process.signal(signal.SIGTERM)
    process.ends(75, 0)
    assert not list((run / "checkpoints").glob(".step-*")), "a half-written checkpoint was left"
    lost = lost_steps(run)
    ground.finish(run)
    ground.same_bytes(run)
    return Trial(lost)


@fault("SIGUSR1 to one of two ranks, then one goes on alone")
def stop_by_agreement(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    process, _ = ground.under_way(run, chance, ranks=2)
    os.kill(chance.choice(ranks_of(run)), signal.SIGUSR1)
    process.ends(0)
    assert (run / "exit-status").read_text() == "75\n"
    lost = lost_steps(run)
    assert lost == 0
    ground.finish(run)
    ground.same_losses(run)
    return Trial(lost)


@fault("a rank that stands still")
def hang(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    process, _ = ground.under_way(run, chance, ranks=2, restarts=3, training__parallel__timeout_minutes=0.2)
    victim = chance.choice(ranks_of(run))
    os.kill(victim, signal.SIGSTOP)
    lost = lost_steps(run)
    until(lambda: "fallen silent" in process.output, process)
    with contextlib.suppress(ProcessLookupError):  # torchrun does so itself after half a minute
        os.kill(victim, signal.SIGKILL)
    output = process.ends(0)
    assert f"process {victim}) has fallen silent" in output
    ground.same_losses(run)
    return Trial(lost)


@fault("disk full during a checkpoint")
def disk_full_checkpoint(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    one = (ground.reference / f"checkpoints/step-{STEPS:08d}" / ONE_FILE).stat().st_size
    with small_disk(folder / "disk", str(int(one * chance.uniform(1.3, 2.7)))) as resize:
        run = folder / "disk" / "run"
        output = ground.pretrain(run).ends(1)
        assert "could not be written (No space left on device" in output, output
        assert not list((run / "checkpoints").glob(".step-*"))
        lost = lost_steps(run)
        resize("64m")
        ground.finish(run)
        ground.same_bytes(run)
    return Trial(lost)


@fault("disk full during a corpus build")
def disk_full_corpus(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    with small_disk(folder / "disk", f"{chance.randrange(16, 500)}k") as resize:
        command = ("prepare", "--data=example:families", "--valid=0.1", f"--out={folder / 'disk' / 'corpus'}")
        output = ground.start(*command).ends(1)
        assert "No space left on device" in output, output
        left = [path.name for path in (folder / "disk").iterdir()]
        assert not left, f"left behind: {left}"
        resize("16m")
        ground.start(*command).ends(0)
        made = json.loads((folder / "disk" / "corpus" / "corpus.json").read_text())
        assert made["digests"] == json.loads((ground.corpus / "corpus.json").read_text())["digests"]
    return Trial()


@fault("disk full during an embedding file")
def disk_full_embedding(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    command = ("embed", f"--model={ground.reference / 'model'}", "--data=example:families", "--device=cpu")
    whole = folder / "whole.parquet"
    ground.start(*command, f"--out={whole}").ends(0)
    with small_disk(folder / "disk", str(int(whole.stat().st_size * chance.uniform(0.1, 1.8)))) as resize:
        out = folder / "disk" / "part.parquet"
        output = ground.start(*command, f"--out={out}").ends(1)
        assert "No space left on device" in output and not out.exists(), output
        resize("64m")
        ground.start(*command, f"--out={out}").ends(0)
        assert digest(out) == digest(whole)
    return Trial()


def _stopped_run(ground: Ground, run: Path, chance: random.Random) -> None:
    """A run that was killed when it had at least two checkpoints."""
    process = ground.pretrain(run)
    at = chance.randrange(3 * EVERY, STEPS - EVERY)
    until(lambda: step_of(run) >= at and len(list((run / "checkpoints").glob("step-*"))) >= 2, process)
    process.kill()


@fault("checkpoint bytes flipped")
def flipped(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    _stopped_run(ground, run, chance)
    newest = max((run / "checkpoints").glob("step-*"))
    path = newest / chance.choice([ONE_FILE, "state.json"])
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    lost = step_of(run) - sorted(int(f.name[5:]) for f in (run / "checkpoints").glob("step-*"))[-2]
    output = ground.pretrain(run).ends(0)
    assert f"{newest.name}: damaged checkpoint passed over" in output
    ground.same_bytes(run)
    return Trial(lost, path.name)


@fault("checkpoint cut short")
def cut(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    _stopped_run(ground, run, chance)
    newest = max((run / "checkpoints").glob("step-*"))
    path = newest / chance.choice([ONE_FILE, "state.json"])
    os.truncate(path, chance.randrange(path.stat().st_size))
    lost = step_of(run) - sorted(int(f.name[5:]) for f in (run / "checkpoints").glob("step-*"))[-2]
    output = ground.pretrain(run).ends(0)
    assert f"{newest.name}: damaged checkpoint passed over" in output
    ground.same_bytes(run)
    return Trial(lost, path.name)


@fault("run folder read-only, or another user's")
def read_only(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    before = without_privilege()
    run = folder / "run"
    run.mkdir()
    if chance.random() < 0.5 and os.geteuid() == 0:
        os.chown(run, 12345, 12345)
        run.chmod(0o755)
    else:
        run.chmod(0o555)
    output = ground.pretrain(run, before=before).ends(1)
    assert "the run folder cannot be written (owner" in output, output
    return Trial()


@fault("permission taken away in mid-run")
def permission_lost(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    before = without_privilege()
    run = folder / "run"
    process = ground.pretrain(run, before=before)
    until(lambda: saved_step(run) >= EVERY, process)
    (run / "checkpoints").chmod(0o555)
    output = process.ends(1)
    assert "could not be written (Permission denied" in output, output
    lost = lost_steps(run)
    (run / "checkpoints").chmod(0o755)
    ground.finish(run)
    ground.same_bytes(run)
    return Trial(lost)


@fault("two runs in one folder")
def two_runs(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    first = ground.pretrain(run, training__steps=10**6)
    until(lambda: step_of(run) >= 1, first)
    output = ground.pretrain(run, training__steps=10**6).ends(1)
    assert f"is in use by process {first.process.pid} on {os.uname().nodename}" in output, output
    assert first.process.poll() is None
    first.signal(signal.SIGTERM)
    first.ends(75)
    return Trial()


@fault("the clock moves by days, both ways")
def clock(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    (folder / "sitecustomize.py").write_text(
        "import time, random\nreal = time.time\ntime.time = lambda: real() + random.uniform(-1e6, 1e6)\n"
    )
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    ground.pretrain(run, training__max_minutes=20, environment={"PYTHONPATH": path}).ends(0)
    seconds = [row["seconds"] for row in rows(run) if row["split"] == "train"]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 600
    ground.same_bytes(run)
    return Trial()


@fault("corpus changed under a run")
def corpus_changed(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    corpus, run = folder / "corpus", folder / "run"
    shutil.copytree(ground.corpus, corpus)
    process = ground.pretrain(run, data=corpus, training__steps=100_000)
    until(lambda: saved_step(run) >= EVERY, process)
    path = chance.choice([p for p in sorted(corpus.iterdir()) if p.name != "corpus.json" and p.stat().st_size > 1000])
    original = path.read_bytes()
    data = bytearray(original)
    data[chance.randrange(500, len(data))] ^= 1
    path.write_bytes(data)
    process.signal(signal.SIGTERM)
    process.ends(75, 1)  # 1 where the run has noticed already
    output = ground.pretrain(run, data=corpus, training__steps=100_000).ends(1)
    assert "damaged, or changed" in output, output
    path.write_bytes(original)
    process = ground.pretrain(run, data=corpus, training__steps=100_000)
    until(lambda: "going on from step" in process.output, process)
    process.signal(signal.SIGTERM)
    process.ends(75)
    return Trial(lost_steps(run), path.name)


@fault("a loss that explodes")
def not_finite(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    run = folder / "run"
    wild = {"training__optimizer__lr": 1e30, "training__optimizer__clip": 0}
    output = ground.pretrain(run, **wild).ends(1)
    assert "is not finite at step" in output, output
    assert list(run.glob("not-finite-step-*.safetensors"))
    return Trial(lost_steps(run))


@fault("a worker of prepare is killed")
def worker_killed(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    fasta = folder / "many.fasta"
    random_ = np.random.default_rng(chance.randrange(2**32))
    letters = random_.choice(list(b"ACDEFGHIKLMNPQRSTVWY"), size=(300_000, 60)).astype(np.uint8)
    fasta.write_bytes(b"".join(b">s\n" + row.tobytes() + b"\n" for row in letters))
    out = folder / "corpus"
    process = ground.start("prepare", f"--data={fasta}", f"--out={out}", "--workers=2")
    children = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children")
    until(lambda: len(children.read_text().split()) >= 2 and any(folder.glob(".corpus.writing-*/*/*")), process)
    time.sleep(chance.uniform(0, 0.5))
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    output = process.ends(1)
    assert "worker" in output, output
    assert [path.name for path in folder.iterdir()] == [fasta.name]
    return Trial()


@fault("a URL that stalls")
def stalled_url(ground: Ground, folder: Path, chance: random.Random) -> Trial:
    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b">a\nMKTAYIAK\n" * chance.randrange(1, 50))
                self.wfile.flush()
                time.sleep(60)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/many.fasta"
        began = time.monotonic()
        process = ground.start("prepare", f"--data={url}", f"--out={folder / 'corpus'}", BIOMETRO_STALL_SECONDS="2")
        output = process.ends(1)
        server.shutdown()
    assert url in output and time.monotonic() - began < 50, output
    assert not list(folder.iterdir())
    return Trial()
