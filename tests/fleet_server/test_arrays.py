"""Columns that the server packs itself are read by PostgreSQL as what they were."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet_server.bulk import Insert, column, insert_together, run
from fleet_server.database import Database

COLUMNS: dict[str, list[Any]] = {
    "text": ["", "避孕套", None, "a'\"{},\\ \n", "x" * 100_000],
    "bytea": [b"", b"\xff\xff\xff\xff", None, bytes(range(256))],
    "jsonb": ['{"a": [1, null]}', None, "[]"],
    "int4": [0, -1, None, 2**31 - 1, -(2**31)],
    "int8": [0, -1, None, 2**63 - 1, -(2**63)],
    "timestamptz": [
        datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        None,
        datetime(9999, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
        datetime(1, 1, 1, tzinfo=UTC) + timedelta(microseconds=1),
    ],
    "bool": [True, None, False],
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("length", [0, 1, 5])
def test_a_column_comes_back_as_it_was_given(database: Database, kind: str, length: int) -> None:
    values = COLUMNS[kind][:length]
    shown = "text" if kind == "jsonb" else kind
    with database.begin() as connection:
        rows = run(connection, f"SELECT value::{shown} FROM unnest(%b::{kind}[]) AS value", [column(kind, values)])
    assert [row[0] for row in rows] == values


def test_what_is_written_first_in_a_transaction_is_kept_by_its_commit_and_gone_without(database: Database) -> None:
    for kept in (True, False):
        connection = database.open()
        insert_together(
            connection, [Insert("server_state", {"key": "text", "value": "jsonb"}, [(f"kept: {kept}", "1")])]
        )
        if kept:
            connection.commit()
        connection.close()
    with database.begin() as connection:
        assert run(connection, "SELECT key FROM server_state WHERE key LIKE 'kept%%'") == [("kept: True",)]
