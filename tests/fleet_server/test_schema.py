"""The schema that migrations make is the one that the code's tables describe, and every page speaks both languages."""

import ast
import re
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo  # noqa: F401 - proves that Babel's compiler is installed
from babel.messages.pofile import read_po
from sqlalchemy import text

import fleet_server.app  # noqa: F401 - imports every feature's tables
from fleet_server.database import Database, metadata
from fleet_server.schema import migrate
from fleet_server.web import i18n

WEB = Path(i18n.__file__).parent


def test_migrations_and_tables_agree(database_url: str) -> None:
    database = Database(database_url)
    with database.begin() as connection:
        partitions = set(connection.execute(text("SELECT relname FROM pg_class WHERE relispartition")).scalars())
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_name": lambda name, kind, _: kind != "table" or name not in partitions,
            },
        )
        differences = [d for d in compare_metadata(context, metadata) if "alembic_version" not in str(d)]
    database.close()
    assert differences == []


def test_migrating_again_changes_nothing(owner_url: str) -> None:
    assert migrate(owner_url) is None
    assert migrate(owner_url) is None


def texts() -> set[str]:
    """Every text that pages and their words mark for translation."""
    methods = [("**.py", "python"), ("templates/**.html", "jinja2")]
    keywords = {"_": None, "N_": None, "gettext": None}
    found = extract_from_dir(WEB, methods, keywords=keywords)
    return {str(message) for _, _, message, _, _ in found}


@pytest.mark.parametrize("language", list(i18n.LANGUAGES))
def test_every_text_is_translated(language: str) -> None:
    with (WEB / "translations" / f"{language}.po").open("rb") as file:
        catalogue = read_po(file, locale=language)
    assert len(texts()) > 100
    missing = sorted(text for text in texts() if not (catalogue.get(text) and catalogue[text].string))
    assert missing == []
    for message in catalogue:
        assert set(re.findall(r"\{\w+\}", str(message.id))) <= set(re.findall(r"\{\w+\}", str(message.string))) or (
            language == "zh" and not message.id
        ), message.id


def test_chinese_pages_are_chinese() -> None:
    with (WEB / "translations" / "zh.po").open("rb") as file:
        catalogue = read_po(file, locale="zh")
    for message in catalogue:
        if message.id:
            assert re.search(r"[\u4e00-\u9fff]", str(message.string)), message.id


def test_the_ui_never_speaks_of_buying() -> None:
    text = (WEB / "translations" / "zh.po").read_text()
    assert not re.search("销售|购买|出售|顾客", text)


def test_no_module_connects_or_reads_the_environment_when_imported() -> None:
    """Wiring happens in one place; a module that is imported does nothing."""
    for path in WEB.parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign | ast.Expr | ast.AnnAssign):
                source = ast.unparse(node)
                assert not re.search(r"os\.environ|create_engine\(|\.connect\(", source) or "lambda" in source, path
