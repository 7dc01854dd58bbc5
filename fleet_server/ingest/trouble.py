"""What went wrong with a machine's reports, for the log: which machine, which stream, which number; never what they say."""

from collections.abc import Iterable
from typing import Final, NamedTuple

import structlog

EVERY_S: Final = 60.0
MACHINES_MAX: Final = 10_000

log = structlog.get_logger()


class Trouble(NamedTuple):
    """`facts` of a stream, from `seq` on: quarantined, forked, a gap, or lost."""

    what: str
    dispenser_id: str
    stream_no: int
    seq: int
    facts: int = 1


class Teller:
    """Logs trouble; of the same trouble of one machine one line a minute, with how many were left out: a storm must not fill a disk."""

    def __init__(self) -> None:
        self._told_s: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def tell(self, troubles: Iterable[Trouble], at_s: float) -> None:
        """Log what a transaction has found, once it is committed; `at_s` is monotonic."""
        for trouble in troubles:
            key = (trouble.what, trouble.dispenser_id)
            last_s = self._told_s.get(key)
            if last_s is not None and at_s - last_s < EVERY_S:
                self._left_out[key] = self._left_out.get(key, 0) + 1
                continue
            if len(self._told_s) >= MACHINES_MAX:
                self._told_s.clear()
                self._left_out.clear()
            self._told_s[key] = at_s
            log.warning(
                trouble.what,
                dispenser=trouble.dispenser_id,
                stream=trouble.stream_no,
                seq=trouble.seq,
                facts=trouble.facts,
                left_out=self._left_out.pop(key, 0),
            )
