"""`make bench` prints every figure as a ratio to a limit measured in the same run; `make bench ARGS="ingest"` one of them."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any, Final

from tests.benchmarks import agent, flood, ingest, scale, simulation

BENCHMARKS: Final[dict[str, Callable[[argparse.Namespace], Iterable[Any]]]] = {
    "ingest": ingest.run,
    "flood": lambda _options: flood.run(),
    "agent": lambda _options: agent.run(),
    "scale": scale.run,
    "simulation": lambda _options: simulation.run(),
}


def numbers(value: str) -> list[int]:
    """Read `42,4200`."""
    return [int(part) for part in value.split(",")]


def main() -> None:
    """Run the benchmarks that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of `ingest`, of which the median counts")
    parser.add_argument("--dispensers", type=numbers, default=[42, 4_200], help="sizes of fleets for `scale`")
    parser.add_argument("--history", type=numbers, default=[0, 1_000_000], help="facts that are there, for `scale`")
    options = parser.parse_args()
    names = options.names
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{unknown[0]}: expected one of {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        for figure in BENCHMARKS[name](options):
            print(figure, flush=True)


if __name__ == "__main__":
    main()
