"""Logs: one JSON object a line, on standard error; no secret and nothing of a person goes in."""

import logging
import sys

import structlog

log = structlog.get_logger()

SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(*, level: int = logging.INFO) -> None:
    """Set up logging for a process: our own lines, and those of libraries, in one form."""
    as_json: list[structlog.typing.Processor] = [
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]
    structlog.configure(
        processors=[*SHARED, *as_json],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    strip = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=SHARED, processors=[strip, *as_json]),
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    # It warns each second of a look that takes longer than one, as while the database stands still.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


class Outage:
    """Says once that the database is away from where it is needed, and once that it is back."""

    def __init__(self, needed_for: str) -> None:
        self._needed_for, self._is_away = needed_for, False

    def note(self, error: Exception) -> None:
        """It is away."""
        if not self._is_away:
            self._is_away = True
            log.warning("database is away; waiting", needed_for=self._needed_for, error=str(error).splitlines()[0])

    def over(self) -> None:
        """It has answered."""
        if self._is_away:
            self._is_away = False
            log.info("database is back", needed_for=self._needed_for)
