"""A migration loses nothing of what an older server has stored, and what it forbids stays forbidden."""

from typing import Any

import psycopg
import pytest

from fleet_server.schema import migrate

PARTITIONED = ("facts", "movements", "vitals_history")
OLD_ROWS = """
INSERT INTO facts SELECT 'HD-' || m, 1, n, convert_to('line ' || n, 'UTF8'), 'vend', now(), now(), now(), NULL
FROM generate_series(1, 40) AS m, generate_series(1, 25) AS n;
INSERT INTO movements SELECT 'HD-' || m, 'fact:HD-' || m || '/1/' || n || '#0', 'slot/HD-' || m || '/1',
    'dispensed/HD-' || m, 'CONDOM-M', 'L1', 1, 'vend_dispensed', 'x', 'y', now(), now(), 1, 1, n, 0
FROM generate_series(1, 40) AS m, generate_series(1, 25) AS n;
INSERT INTO vitals_history SELECT 'HD-' || m, '2026-01-01Z'::timestamptz + n * interval '1 hour', '{"signal_dbm": -70}'
FROM generate_series(1, 40) AS m, generate_series(1, 25) AS n;
"""


def rows(connection: psycopg.Connection[Any], table: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3".encode()).fetchall()


def test_rows_of_before_the_partitions_are_all_there_and_every_partition_has_its_share(empty_database_url: str) -> None:
    migrate(empty_database_url, "0003")
    with psycopg.connect(empty_database_url) as connection:
        connection.execute(OLD_ROWS)
        before = {table: rows(connection, table) for table in PARTITIONED}
    migrate(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        for table in PARTITIONED:
            assert rows(connection, table) == before[table]
            parts = f"SELECT tableoid::regclass, count(*) FROM {table} GROUP BY 1"
            assert len(connection.execute(parts.encode()).fetchall()) > 8, table


@pytest.mark.parametrize("table", ["facts", "movements"])
def test_the_owner_cannot_change_a_row_through_its_partition_either(owner_url: str, table: str) -> None:
    with psycopg.connect(owner_url, autocommit=True) as connection:
        connection.execute(OLD_ROWS)
        parts = f"SELECT relid::regclass::text FROM pg_partition_tree('{table}')"
        names = [name for (name,) in connection.execute(parts.encode()).fetchall()]
        assert len(names) == 17
        for name in names:
            for statement in (f"DELETE FROM {name}", f"UPDATE {name} SET seq = 0 WHERE seq < 0", f"TRUNCATE {name}"):
                with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
                    connection.execute(statement.encode())
        assert len(rows(connection, table)) == 1000
