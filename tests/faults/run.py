"""The long form of the fault tests: every fault many times, and a table of what became of it.

python tests/faults/run.py --trials 20 [--only 'kill -9 of a rank, restarted by torchrun'] [--out faults.md]
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import scenarios  # noqa: F401 (fills the table)
from harness import FAULTS, Ground, ImpossibleHereError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--only", choices=list(FAULTS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ground, lines, failed = Ground(), [], 0
    for name in options.only or FAULTS:
        lost, survived, said = [], 0, ""
        began = time.monotonic()
        for trial in range(options.trials):
            folder = Path(tempfile.mkdtemp(prefix="fault-"))
            try:
                result = FAULTS[name](ground, folder, random.Random(f"{options.seed} {name} {trial}"))
                survived += 1
                lost += [] if result.lost is None else [result.lost]
            except ImpossibleHereError as reason:
                said = f"skipped: {reason}"
                break
            except AssertionError as error:
                failed += 1
                print(f"{name}, trial {trial}: {error}", file=sys.stderr)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        steps = f"{sum(lost) / len(lost):.1f} ({max(lost)})" if lost else "-"
        seconds = (time.monotonic() - began) / max(1, options.trials)
        lines.append(f"| {name} | {said or options.trials} | {'' if said else survived} | {steps} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    ground.close()
    head = "| fault | trials | survived | lost steps, mean (most) | seconds a trial |\n|---|---|---|---|---|"
    table = "\n".join([head, *lines])
    print(f"\n{table}")
    if options.out is not None:
        options.out.write_text(table + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
