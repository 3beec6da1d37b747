"""Work shared out over processes of this machine: results in order, and no process is ever left behind.

Processes are started afresh rather than forked, so that they hold neither the threads nor the memory of the one that
starts them; and by a command of their own rather than by `multiprocessing`, which would import the user's script again.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Any, Protocol

from biometro.errors import UserError

_SAID = (UserError, OSError)  # errors that are a result, such as a full disk; any other is a bug
_AT_ONCE = 2  # tasks a process holds: one that it works on, one that it will find waiting
_COMMAND = "import sys; sys.path[:] = {path!r}; from biometro.processes import _child; _child({handle})"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_each(workers: int) -> int | None:
    """Of so many processes that share the cores, the threads of one; None, its own choice, of one alone."""
    return max(1, cores() // workers) if workers > 1 else None


class Worker(Protocol):
    """What runs in a process: called with one task after another, and at the end asked for what it has gathered."""

    def __call__(self, task: Any, /) -> Any: ...

    def finish(self) -> Any: ...


class Processes:
    """Processes that each hold one worker; leaving the `with` block ends them, whatever happened in it.

    Args:
        makers: one for each process, to be called there; they, tasks and results must be picklable.
    """

    def __init__(self, makers: Sequence[Callable[[], Worker]]):
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []
        try:
            for maker in makers:
                ours, theirs = Pipe()
                command = _COMMAND.format(path=sys.path, handle=theirs.fileno())
                process = subprocess.Popen(
                    [sys.executable, "-c", command],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C is for the parent, which ends them
                )
                self._processes.append(process)
                self._pipes.append(ours)
                theirs.close()
                self._send(len(self._pipes) - 1, maker)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all processes, at once."""
        for process in self._processes:
            process.kill()
        for process, pipe in zip(self._processes, self._pipes, strict=False):
            process.wait()
            pipe.close()

    def run(self, tasks: Iterable[Any], ahead: int | None = None) -> Iterator[Any]:
        """The results of all tasks, in the order of tasks.

        Of several errors, from the tasks or from taking the next one, the first in that order is raised.

        Args:
            tasks: taken one by one, as processes have need of them.
            ahead: how many results at most may wait for one that stands before them.

        Raises UserError and OSError as the workers do, and UserError where a process was killed.
        """
        stream, more = iter(tasks), True
        load = [0] * len(self._pipes)
        results: dict[int, Any] = {}
        given = done = 0
        while more or done < given:
            while more and min(load) < _AT_ONCE and (ahead is None or given - done < ahead):
                try:
                    task = next(stream)
                except StopIteration:
                    more = False
                    break
                except UserError as error:
                    results[given], given, more = error, given + 1, False
                    break
                process = load.index(min(load))
                self._send(process, (given, task))
                load[process], given = load[process] + 1, given + 1
            if done not in results and done < given:
                for pipe in wait(self._pipes):
                    process = self._pipes.index(pipe)  # type: ignore[arg-type]
                    number, result = self._receive(process)
                    results[number] = result
                    load[process] -= 1
                    more = more and not isinstance(result, _SAID)
            while done in results:
                result, done = results.pop(done), done + 1
                if isinstance(result, _SAID):
                    raise result
                yield result

    def finish(self) -> list[Any]:
        """What each worker has gathered, in the order of their makers. Raises as `run` does."""
        for process in range(len(self._pipes)):
            self._send(process, None)
        results = [self._receive(process)[1] for process in range(len(self._pipes))]
        for result in results:
            if isinstance(result, _SAID):
                raise result
        return results

    def _send(self, process: int, thing: Any) -> None:
        try:
            self._pipes[process].send(thing)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died(process) from error

    def _receive(self, process: int) -> tuple[int, Any]:
        try:
            number, result = self._pipes[process].recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died(process) from error
        if isinstance(result, _Bug):
            raise RuntimeError(f"in a worker process:\n{result}")
        return number, result

    def _died(self, process: int) -> UserError:
        status = self._processes[process].wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return UserError(
            f"one of {len(self._pipes)} worker processes {how}, perhaps for want of memory; "
            "start again, with fewer workers if it comes again"
        )


class _Bug(str):
    """A traceback, of an error that is no user's."""


def _child(handle: int) -> None:
    """What a process does: makes its worker, feeds it, and sends back what it gives."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # a batch system sends them to everyone in a job
        signal.signal(number, signal.SIG_IGN)
    pipe = Connection(handle)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                tasks.put(pipe.recv())
            except (EOFError, OSError):  # the parent is gone, even if it had no time to say so
                os._exit(1)

    try:
        maker = pipe.recv()
        threading.Thread(target=listen, daemon=True).start()
        worker = maker()
        while (task := tasks.get()) is not None:
            try:
                result = worker(task[1])
            except _SAID as error:
                result = error
            pipe.send((task[0], result))
        try:
            result = worker.finish()
        except _SAID as error:
            result = error
        pipe.send((-1, result))
    except EOFError:
        os._exit(1)
    except Exception:
        pipe.send((-1, _Bug(traceback.format_exc())))
    tasks.get()  # held until the parent closes, so that nothing it may still send fails
