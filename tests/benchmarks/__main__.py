"""`make bench` prints every figure as a ratio to a limit measured in the same run; `make bench ARGS="ingest"` one of them."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any, Final

from tests.benchmarks import agent, ingest

BENCHMARKS: Final[dict[str, Callable[[], Iterable[Any]]]] = {"ingest": ingest.run, "agent": agent.run}


def main() -> None:
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all")
    names = parser.parse_args().names
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]}: expected one of {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        for figure in BENCHMARKS[name]():
            print(figure, flush=True)


if __name__ == "__main__":
    main()
