"""Many images past one machine: the function that `x86tables check --jobs` calls, over a Dask bag of paths.

python fleet.py IMAGE...                  on a cluster of this machine's cores
python fleet.py tcp://HOST:8786 IMAGE...  on a cluster that is there; its workers see the same files

pip install 'dask[distributed]'
"""

import sys
from collections import Counter
from typing import Any

from x86tables.fleet import summarize


def main(arguments: list[str]) -> None:
    import dask.bag
    import distributed

    bag: Any = dask.bag  # neither has types
    client: Any = distributed.Client
    address = arguments.pop(0) if arguments and arguments[0].startswith("tcp://") else None
    with client(address) if address else client(processes=True, dashboard_address=None):
        summaries = bag.from_sequence(arguments, partition_size=20).map(summarize).compute()
    for one in summaries:
        print(f"{one.path}: {one.verdict or 'not judged'}: {one.error.removeprefix(f'{one.path}: ') or one.reason}")
    counts = Counter(one.verdict or "not judged" for one in summaries)
    print(f"{len(summaries)} images: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}")


if __name__ == "__main__" and len(sys.argv) > 1:
    main(sys.argv[1:])
