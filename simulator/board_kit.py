"""`python -m simulator.board_kit module:factory --board fafb|hdb1` runs a board driver against a board and prints a checklist.

Every rule has a name, a fresh board of its own, and a verdict. Exit code 0 where no rule is broken, 1 where one is, 2 for wrong
arguments. The rules are in `board_checks`, the levers on the board in `board_rig`.
"""

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from device_agent.hal.ports import BoardError, BoardFactory
from simulator.board_checks import CHECKS
from simulator.board_driven import CALL_S_MAX, POLL_S_MAX, BrokenRuleError, Driven, UnseenError
from simulator.board_rig import RIGS, Rig

NEVER_BLOCKS: Final = "NEVER-BLOCKS"
ONLY_BOARD_ERROR: Final = "ONLY-BOARD-ERROR"
OVER_ALL: Final = {
    NEVER_BLOCKS: f"in all checks, poll() returns within {POLL_S_MAX:g} s and every other call within {CALL_S_MAX:g} s",
    ONLY_BOARD_ERROR: "in all checks, nothing but BoardError is raised",
}
JOBS: Final = 4
RigFactory = Callable[[Path], Rig]


class Verdict(StrEnum):
    """How a rule fared."""

    PASSED = "passed"
    BROKEN = "broken"
    UNSEEN = "not observed"


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the checklist."""

    rule: str
    verdict: Verdict
    seen: str


def run_kit(
    factory: BoardFactory,
    rig_of: RigFactory,
    config: dict[str, Any] | None = None,
    rules: Sequence[str] = tuple(CHECKS),
    jobs: int = JOBS,
) -> list[Result]:
    """Check the rules, each on a rig of its own; `{here}` in a text of the configuration is that rig's directory."""
    with ThreadPoolExecutor(jobs) as pool:
        checked = list(pool.map(lambda rule: _check(rule, factory, rig_of, config or {}), rules))
    found = [result for result, _, _ in checked]
    slow = [f"{result.rule}: {text}" for result, texts, _ in checked for text in texts]
    wrong = [f"{result.rule}: {text}" for result, _, texts in checked for text in texts]
    for rule, breaches in ((NEVER_BLOCKS, slow), (ONLY_BOARD_ERROR, wrong)):
        verdict = Verdict.BROKEN if breaches else Verdict.PASSED
        found.append(Result(rule, verdict, "; ".join(breaches[:5]) or OVER_ALL[rule]))
    return found


def _check(
    rule: str, factory: BoardFactory, rig_of: RigFactory, config: dict[str, Any]
) -> tuple[Result, list[str], list[str]]:
    with tempfile.TemporaryDirectory(prefix="board-kit-") as directory:
        here = {k: v.replace("{here}", directory) if isinstance(v, str) else v for k, v in config.items()}
        rig = rig_of(Path(directory))
        driven = Driven(factory, rig, here)
        try:
            result = Result(rule, Verdict.PASSED, CHECKS[rule](driven))
        except (UnseenError, NotImplementedError) as error:
            result = Result(rule, Verdict.UNSEEN, str(error) or "the rig has no such lever")
        except BrokenRuleError as error:
            result = Result(rule, Verdict.BROKEN, str(error))
        except BoardError as error:
            result = Result(rule, Verdict.BROKEN, f"BoardError: {error}")
        finally:
            _close(driven, rig)
    return result, driven.slow, driven.wrong


def _close(driven: Driven, rig: Rig) -> None:
    try:
        driven.close()
    except (BrokenRuleError, BoardError):
        driven.wrong.append("close() raised")
    rig.close()


def table(results: Sequence[Result]) -> str:
    """The checklist for reading."""
    width = max(len(result.rule) for result in results)
    lines = [f"{result.verdict:<12}  {result.rule:<{width}}  {result.seen}" for result in results]
    counts = {verdict: sum(result.verdict is verdict for result in results) for verdict in Verdict}
    return "\n".join([*lines, ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)])


def _named(words: str, option: str) -> Any:
    module, _, name = words.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{option} = {words!r}: expected module:factory ({error})") from None


def _setting(words: str) -> tuple[str, Any]:
    name, equals, text = words.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"--config = {words!r}: expected name=value")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return name, value


def main(arguments: list[str] | None = None) -> int:
    """Run the kit and print the checklist."""
    sys.path.insert(0, "")  # A maker's own driver stands where the kit is started.
    parser = argparse.ArgumentParser(prog="python -m simulator.board_kit", description=__doc__)
    parser.add_argument("factory", type=lambda words: _named(words, "factory"), help="module:factory of the driver")
    board = parser.add_mutually_exclusive_group(required=True)
    board.add_argument("--board", choices=sorted(RIGS), help="a simulated board on a pty")
    board.add_argument("--rig", type=lambda words: _named(words, "--rig"), help="module:factory of a rig of your own")
    parser.add_argument("--config", type=_setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--rules", nargs="+", choices=sorted(CHECKS), default=list(CHECKS), metavar="RULE")
    parser.add_argument("--jobs", type=int, default=JOBS, help="checks at a time; 1 for one board on a bench")
    parser.add_argument("--json", action="store_true", help="print plain values")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs = {options.jobs}: expected 1 or more")
    rig_of = options.rig or RIGS[options.board]
    results = run_kit(options.factory, rig_of, dict(options.config), options.rules, options.jobs)
    plain = [{"rule": r.rule, "verdict": str(r.verdict), "seen": r.seen} for r in results]
    sys.stdout.write((json.dumps(plain, indent=2) if options.json else table(results)) + "\n")
    return int(any(result.verdict is Verdict.BROKEN for result in results))


if __name__ == "__main__":
    sys.exit(main())
