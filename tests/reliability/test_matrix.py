"""Every row of the fault matrix has a test that is named after it, or a stated reason, and stands in the document."""

import ast
from pathlib import Path

from tests.reliability.matrix import ROWS, UNTESTED, row_of
from tests.reliability.report import DOCUMENT, document

TESTS = Path(__file__).parents[1]


def rows_with_tests() -> set[str]:
    trees = (ast.parse(path.read_text()) for path in TESTS.rglob("test_*.py"))
    names = (node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {row for name in names if (row := row_of(name))}


def test_every_row_of_the_matrix_has_a_test_or_a_reason() -> None:
    assert {row.id for row in ROWS} - rows_with_tests() - UNTESTED.keys() == set()
    assert rows_with_tests() <= {row.id for row in ROWS}


def test_the_document_holds_every_row_and_the_prose_as_it_stands() -> None:
    text = DOCUMENT.read_text()
    assert text == document({}, text), "run `make reliability`"
    assert all(f"| {row.id} | {row.inject} |" in text for row in ROWS)


def test_a_result_replaces_that_of_the_same_test_and_leaves_the_others() -> None:
    first = document(
        {"test_n1_a[short-seed1]": ("passed", 3.0), "test_b1_b[short-seed1]": ("skipped: no root", 0.0)}, ""
    )
    second = document({"test_n1_a[short-seed1]": ("**failed**", 4.0)}, first)
    assert "| N1 | `test_n1_a[short-seed1]` | **failed** | 4 |" in second
    assert "| B1 | `test_b1_b[short-seed1]` | skipped: no root | 0 |" in second
    assert second.count("test_n1_a") == 1
