"""Shows how far a run has come: a bar on a terminal, a line every tenth of the way elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from simulator.fleet import Progress
from simulator.world import local


@contextmanager
def shown(console: Console, title: str, began_ms: int, ends_ms: int) -> Iterator[Callable[[Progress], None]]:
    """Show the way from one virtual moment to another; yields what takes the reports."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[facts]} facts"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = RichProgress(*columns, console=console, disable=not console.is_terminal, transient=True)
    task = bar.add_task(title, total=ends_ms - began_ms, facts=0)
    tenth = 0

    def report(progress: Progress) -> None:
        nonlocal tenth
        done, day = progress.now_ms - began_ms, local(progress.now_ms).date()
        bar.update(task, completed=done, description=f"{title} {day}", facts=progress.facts)
        reached = 10 * done // max(1, ends_ms - began_ms)
        if not console.is_terminal and reached > tenth:
            tenth = reached
            sys.stderr.write(f"{title}: {tenth * 10} % ({day}), {progress.facts} facts\n")
            sys.stderr.flush()

    with bar:
        yield report
