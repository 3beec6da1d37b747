"""Where the program starts, before its libraries are loaded: a stop during those seconds is one line as well."""

import os
import signal
import sys
from types import FrameType

from biometro.training.signals import remember, remembering


def _stop(number: int, frame: FrameType | None) -> None:
    print(
        f"biometro: stopped by {signal.Signals(number).name}; start the same command again", file=sys.stderr, flush=True
    )
    os._exit(75)  # an exception is lost where Python runs a callback of its own, as it does while it imports


def run() -> int:
    """Run one job from the command line; gives its exit status (see `biometro.cli.main`)."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, remember if remembering() else _stop)
    try:
        from biometro.cli import main

        return main()
    except KeyboardInterrupt:
        print("biometro: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(run())
