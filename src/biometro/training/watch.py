"""A run that stands still ends, and says which rank it waits for.

Each rank notes what it is doing (`beat`); a thread tells the others through the store. A rank whose own note has not
changed for the time-out looks at everybody's: whoever has got least far, or has fallen silent, is the one to name.
Collectives cannot tell: there, all ranks but one look equally stuck.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field

from biometro.training.parallel import World

_OFTEN = 5.0  # seconds between messages, less where the time-out is short


@dataclass
class Note:
    """What a rank does, and since when (its own clock). `count` grows with every note, `sent` with every message."""

    count: int = 0
    sent: int = 0
    doing: str = "setting up"
    seconds: float = 0.0
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)


class Watch:
    """Context manager around the loop; nothing at all in a world of one."""

    def __init__(self, world: World, timeout_minutes: float):
        self.world, self.timeout = world, 60 * timeout_minutes
        self._note, self._since = Note(), time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._interval = min(_OFTEN, self.timeout / 5)

    def __enter__(self) -> Watch:
        if self.world.size > 1:
            self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()  # a thread that lets go of a process group while Python ends brings the process down

    def beat(self, doing: str) -> None:
        """From now on this rank does `doing`."""
        self._since = time.monotonic()
        self._note.doing = doing
        self._note.count += 1

    def again(self) -> None:
        """What this rank does, it has done some more of."""
        self.beat(self._note.doing)

    def _run(self) -> None:
        try:
            while not self._over.wait(self._interval):
                self._send()
                if time.monotonic() - self._since > self.timeout:
                    before = self._notes()
                    self._over.wait(3 * self._interval)
                    self._send()
                    if time.monotonic() - self._since > self.timeout and not self._over.is_set():
                        self._give_up(verdict(before, self._notes(), self.timeout))
        except RuntimeError:  # the store is gone: its host has ended, and so will this process
            return

    def _send(self) -> None:
        self._note.sent += 1
        self._note.seconds = time.monotonic() - self._since
        assert self.world.store is not None
        self.world.store.set(f"note/{self.world.rank}", json.dumps(asdict(self._note)))

    def _notes(self) -> list[Note | None]:
        store = self.world.store
        assert store is not None
        keys = [f"note/{rank}" for rank in range(self.world.size)]
        return [Note(**json.loads(store.get(key))) if store.check([key]) else None for key in keys]

    def _give_up(self, text: str) -> None:
        """End this process at once: its main thread waits inside a collective, where no exception reaches it."""
        if self.world.store is not None and self.world.store.add("told", 1) == 1:
            print(f"biometro: {text}; start the same command again", file=sys.stderr, flush=True)
        os._exit(1)


def verdict(before: list[Note | None], after: list[Note | None], timeout: float) -> str:
    """Who is late, from two looks at everybody's note, some messages apart."""
    pairs = list(enumerate(zip(before, after, strict=True)))
    silent = [rank for rank, (old, new) in pairs if new is None or (old is not None and old.sent == new.sent)]
    known = [note for note in after if note is not None]
    least = min(note.count for note in known)
    behind = [rank for rank, note in enumerate(after) if note is not None and note.count == least]
    late = silent or behind
    if not silent and len(behind) == len(after):
        return f"all ranks have stood still for {timeout:,.0f} s, {known[0].doing}"
    lines = []
    for rank in late:
        note = after[rank]
        if note is None:
            lines.append(f"rank {rank} has never reported")
            continue
        place = f"rank {rank} (host {note.host}, process {note.process})"
        if rank in silent:
            lines.append(f"{place} has fallen silent, last seen {note.doing}")
        else:
            lines.append(f"{place} has been {note.doing} for {note.seconds:,.0f} s")
    return f"{'; '.join(lines)}; the other ranks have waited for more than {timeout:,.0f} s"
