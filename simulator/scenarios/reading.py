"""YAML to a scenario. Whatever is wrong is said with its line, its key and what was expected instead."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from simulator.scenarios.conflicts import conflicts
from simulator.scenarios.form import Scenario, keys_at
from simulator.scenarios.words import expected, shown, unknown

BYTES_MAX: Final = 256 * 1024
DEPTH_MAX: Final = 10
SHIPPED: Final[Traversable] = files("simulator") / "scenarios"

_NULL, _BOOL, _INT, _FLOAT, _STR = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))
_CORE: Final = {_NULL, _BOOL, _INT, _FLOAT, _STR}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars only: 04:00 is not a number of seconds here, `no` not a boolean, a date not an object."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own class attribute


def _resolves(tag: str, pattern: str, first: Sequence[str]) -> None:
    _Loader.add_implicit_resolver(tag, re.compile(pattern), list(first))


_resolves(_NULL, r"^(?:null|~|)$", ("n", "~", ""))
_resolves(_BOOL, r"^(?:true|false)$", "tf")
_resolves(_INT, r"^[-+]?[0-9]+$", "-+0123456789")
_resolves(
    _FLOAT, r"^[-+]?[0-9]*\.[0-9]+(?:[eE][-+]?[0-9]+)?$|^[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"
)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong in a file."""

    source: str
    line: int  # 0: the file as a whole
    key: str
    told: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}" if self.line else self.source
        return f"{where}: {self.key}: {self.told}" if self.key else f"{where}: {self.told}"


class ScenarioError(ValueError):
    """A scenario that cannot be used; `mistakes` has every one of them, by line."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda mistake: (mistake.line, mistake.key))
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))


@dataclass(frozen=True, slots=True)
class _Spot:
    """A value with the place where it stands."""

    value: Any
    line: int
    children: "dict[str | int, _Spot]"
    key_lines: dict[str, int]


def shipped() -> list[str]:
    """Return the names of the scenarios that come with the simulator."""
    return sorted(entry.name.removesuffix(".yaml") for entry in SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def load(name: str, given: Mapping[str, Any] | None = None) -> Scenario:
    """Read a file, or one of those that are shipped by its name; `given` wins over what it says. Raises ScenarioError."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return read(_text(path, name), name, given)
    if name in shipped():
        return read((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml", given)
    close = difflib.get_close_matches(name, shipped(), n=1)
    hint = f"; did you mean {close[0]}?" if close else f": {', '.join(shipped())}"
    raise ScenarioError([Mistake(name, 0, "", f"expected a .yaml file or the name of a shipped scenario{hint}")])


def _text(path: Path, name: str) -> str:
    try:
        content = path.read_bytes()
        if len(content) > BYTES_MAX:
            raise ScenarioError([Mistake(name, 0, "", f"{len(content)} bytes: expected at most {BYTES_MAX}")])
        return content.decode("utf-8")
    except OSError as error:
        raise ScenarioError([Mistake(name, 0, "", f"expected a readable file ({error.strerror})")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ScenarioError([Mistake(name, line, "", "expected UTF-8 text")]) from None


def read(text: str, source: str = "scenario", given: Mapping[str, Any] | None = None) -> Scenario:
    """Read the text of a scenario; raises ScenarioError with every mistake."""
    root = _compose(text, source)
    if not isinstance(root.value, dict):
        raise ScenarioError([Mistake(source, root.line, "", "expected keys and values, beginning with `name:`")])
    for name, value in (given or {}).items():
        root.value[name], root.children[name] = value, _Spot(value, root.line, {}, {})
    try:
        scenario = Scenario.model_validate(root.value)
    except ValidationError as error:
        raise ScenarioError([_in_words(source, root, one) for one in error.errors(include_url=False)]) from None
    mistakes = [_mistake(source, root, loc, told) for loc, told in conflicts(scenario)]
    if mistakes:
        raise ScenarioError(mistakes)
    return scenario


def _in_words(source: str, root: _Spot, error: ErrorDetails) -> Mistake:
    loc = error["loc"]
    match error["type"]:
        case "extra_forbidden":
            return _mistake(source, root, loc, unknown(str(loc[-1]), keys_at(loc[:-1])), name=True)
        case "union_tag_invalid":
            return _mistake(source, root, (*loc, "event"), expected(error))
        case "missing":
            return _mistake(source, root, loc, expected(error), name=True)
        case _:
            return _mistake(source, root, loc, expected(error))


def _mistake(source: str, root: _Spot, loc: Sequence[str | int], told: str, *, name: bool = False) -> Mistake:
    """Find the line of what is wrong. `name`: it is the last key itself, not its value, that is too much or missing."""
    spot, line, key = root, root.line, ""
    for part in loc:
        is_key = part in spot.children
        if is_key:
            line = spot.key_lines.get(str(part), spot.children[part].line)
            spot = spot.children[part]
        if is_key or (name and part == loc[-1]):  # Elsewhere it is the tag of a union.
            key = f"{key}[{part}]" if isinstance(part, int) else f"{key}.{part}" if key else part
    says_value = not name and not isinstance(spot.value, dict)
    return Mistake(source, line, key, f"{shown(spot.value)}: {told}" if says_value else told)


# ---------------------------------------------------------------- YAML with marks


def _compose(text: str, source: str) -> _Spot:
    try:
        _refuse_excess(text, source)
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ScenarioError([_syntax(error, text, source)]) from None
    if node is None:
        raise ScenarioError([Mistake(source, 1, "", "empty: expected keys and values, beginning with `name:`")])
    mistakes: list[Mistake] = []
    spot = _spot(node, loader, "", source, mistakes)
    if mistakes:
        raise ScenarioError(mistakes)
    return spot


def _refuse_excess(text: str, source: str) -> None:
    """A few lines of aliases can stand for more values than there is memory, and a nest without end for as much time."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise ScenarioError([Mistake(source, line, f"*{event.anchor}", "expected the value itself, not an alias")])
        if depth > DEPTH_MAX:
            raise ScenarioError(
                [Mistake(source, line, "", f"nested more than {DEPTH_MAX} deep: no part of a scenario is")]
            )


def _syntax(error: yaml.YAMLError, text: str, source: str) -> Mistake:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else text[: getattr(error, "position", 0)].count("\n") + 1
    lines = text.splitlines()
    here = lines[line - 1] if line <= len(lines) else ""
    if "\t" in here[: len(here) - len(here.lstrip())]:
        return Mistake(source, line, "", "a tab: expected spaces; YAML does not allow tabs for indenting")
    words = (getattr(error, name, None) for name in ("context", "problem", "reason"))
    problem = ", ".join(word for word in words if word)
    return Mistake(source, line, "", f"not YAML: {problem}")


def _spot(node: yaml.Node, loader: _Loader, key: str, source: str, mistakes: list[Mistake]) -> _Spot:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        spots: dict[str | int, _Spot] = {
            place: _spot(item, loader, f"{key}[{place}]", source, mistakes) for place, item in enumerate(node.value)
        }
        return _Spot([spot.value for spot in spots.values()], line, spots, {})
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, loader, key, source, mistakes)
    value = None
    try:
        known = node.tag in _CORE
        value = loader.construct_object(node) if known else None
    except (yaml.YAMLError, ValueError):
        known = False
    if not known:
        mistakes.append(Mistake(source, line, key, f"{node.tag}: expected text, a number, true or false"))
    return _Spot(value, line, {}, {})


def _mapping(node: yaml.MappingNode, loader: _Loader, key: str, source: str, mistakes: list[Mistake]) -> _Spot:
    spots: dict[str | int, _Spot] = {}
    key_lines: dict[str, int] = {}
    for name_node, value_node in node.value:
        line = name_node.start_mark.line + 1
        if not isinstance(name_node, yaml.ScalarNode):
            mistakes.append(Mistake(source, line, key, "expected a plain word as a key"))
            continue
        name = str(name_node.value)
        full = f"{key}.{name}" if key else name
        if name in key_lines:
            mistakes.append(Mistake(source, line, full, f"twice, first on line {key_lines[name]}: expected it once"))
            continue
        key_lines[name] = line
        spots[name] = _spot(value_node, loader, full, source, mistakes)
    return _Spot({name: spot.value for name, spot in spots.items()}, node.start_mark.line + 1, spots, key_lines)
