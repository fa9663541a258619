"""Machines by the million, past one machine: `differential.bochs` on ranges of cases, over a Dask cluster.

python -m differential.campaign 1000000                     on a cluster of this machine's cores
python -m differential.campaign 1000000 tcp://HOST:8786     on a cluster that is there, with the same checkout

pip install 'dask[distributed]'
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from differential.bochs import Tally, report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SIZE = 2000  # cases a task


def tally(seed: int, first: int, count: int) -> str:
    """What one range of cases covered, as JSON. A process of its own: Dask's workers have threads, and may not fork."""
    command = [sys.executable, "-m", "differential.bochs", str(count), "--seed", str(seed), "--first", str(first)]
    run = subprocess.run(
        [*command, "--workers", "1", "--json"], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
    )
    return run.stdout


def main(arguments: Sequence[str]) -> int:
    """Compare; as the same cases in one process, and 1 when they would."""
    import argparse

    import dask.bag
    import distributed

    parser = argparse.ArgumentParser(prog="python -m differential.campaign", description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="how many cases")
    parser.add_argument("cluster", nargs="?", help="tcp://HOST:PORT of a scheduler")
    parser.add_argument("--seed", type=int, default=1, help="of the series")
    parser.add_argument("--size", type=int, default=SIZE, help="cases a task")
    args = parser.parse_args(arguments)
    client: Any = distributed.Client
    bag: Any = dask.bag  # neither has types
    with client(args.cluster) if args.cluster else client(processes=True, threads_per_worker=1, dashboard_address=None):
        ranges = [(args.seed, first, min(args.size, args.count - first)) for first in range(0, args.count, args.size)]
        parts = bag.from_sequence(ranges, partition_size=1).starmap(tally).compute()
    merged = Tally()
    for part in parts:
        merged.merge(json.loads(part))
    return report(merged)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
