"""The fault codes: those of faults.csv, and those of the server about what machines tell."""

import csv
from typing import Final

from simulator.parameters import data_text

MACHINE_CODES: Final = tuple(row["code"] for row in csv.DictReader(data_text("faults.csv").splitlines()))
SERVER_CODES: Final = (
    "BOOK_BELOW_ZERO", "COUNT_DUE", "LOT_CLAIM_DIFFERS", "STOCK_CLAIM_DIFFERS", "STREAM_REPLACED", "STREAM_FORKED",
    "FACT_QUARANTINED",
)  # fmt: skip
FAULT_CODES: Final = MACHINE_CODES + SERVER_CODES
