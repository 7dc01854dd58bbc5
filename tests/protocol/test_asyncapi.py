"""The published document is the one that the models give."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from protocol.asyncapi import document, render


def test_the_committed_document_is_what_the_models_give() -> None:
    assert (Path(__file__).parents[2] / "docs" / "asyncapi.json").read_text() == render()


def test_every_reference_of_the_document_leads_somewhere() -> None:
    whole = document()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                place: object = whole
                for part in reference.removeprefix("#/").split("/"):
                    assert isinstance(place, dict)
                    place = place[part]
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(whole)


PARSER = Path(__file__).parents[2] / ".venv" / "node"
ASK = """
const { Parser } = require('@asyncapi/parser');
const text = require('fs').readFileSync(0, 'utf8');
new Parser().parse(text).then(({ document, diagnostics }) => console.log(JSON.stringify({
  understood: Boolean(document), channels: document ? document.channels().all().length : 0,
  errors: diagnostics.filter(d => d.severity === 0).map(d => d.message + ' at ' + d.path.join('.')),
})));
"""


def ask_the_reference_parser(text: str) -> dict[str, object]:
    node = shutil.which("node")
    if node is None or not (PARSER / "node_modules" / "@asyncapi" / "parser").exists():
        pytest.skip("node or npm's @asyncapi/parser is not installed")
    done = subprocess.run(
        [node, "-e", ASK], input=text, cwd=PARSER, capture_output=True, text=True, timeout=60, check=True
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_the_reference_parser_understands_the_document() -> None:
    assert ask_the_reference_parser(render()) == {"understood": True, "channels": 7, "errors": []}


def test_the_reference_parser_refuses_a_planted_mistake() -> None:
    broken = document()
    del broken["info"]
    assert ask_the_reference_parser(json.dumps(broken))["errors"]
