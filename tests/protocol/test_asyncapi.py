"""The published document is the one that the models give."""

from pathlib import Path

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
