"""What pydantic found wrong, in the words of a scenario: always what was expected."""

import difflib
from typing import Any, Final

from pydantic_core import ErrorDetails

SHOWN_MAX: Final = 60
LISTED_MAX: Final = 14

_EXPECTED: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "literal_error": "{expected}",
    "union_tag_not_found": "a key {discriminator}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}


def shown(value: object) -> str:
    """Show a value of a file, in short."""
    if isinstance(value, dict):
        return "keys and values"
    text = "a list" if isinstance(value, list) else "nothing" if value is None else repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[: SHOWN_MAX - 3]}..."


def one_of(names: Any) -> str:
    """List what is possible."""
    return f"one of {', '.join(str(name) for name in names)}"


def unknown(name: str, names: Any) -> str:
    """Say that a name is unknown, with those that are known and the one that was probably meant."""
    known = [str(one) for one in names]
    close = difflib.get_close_matches(name, known, n=1)
    listed = one_of(known) if len(known) <= LISTED_MAX else f"one of {len(known)} names, see docs/scenarios.md"
    return f"did you mean {close[0]}? Expected {listed}" if close else f"expected {listed}"


def expected(error: ErrorDetails) -> str:
    """Say what was expected."""
    context: dict[str, Any] = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "missing: expected it here"
        case "value_error":
            told = str(context["error"])
            # One that begins with a sentence of its own says itself what was expected.
            return told if "xpected" in told else f"expected {told}"
        case "union_tag_invalid":
            tags = [tag.strip().strip("'") for tag in str(context["expected_tags"]).split(",")]
            return unknown(str(context["tag"]), tags)
        case kind if kind in _EXPECTED:
            return f"expected {_EXPECTED[kind].format(**context)}"
        case _:
            return error["msg"]
