"""Closed, frozen groups of settings: what one is, and how it is read from YAML and written."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dft_mm.errors import InputError


class Section(BaseModel):
    """A closed, frozen group of settings; every field says what it is where it is defined."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
    elsewhere: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What other tools call a key: their word -> ours, with its sections."""


SectionT = TypeVar("SectionT", bound=Section)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a repeated key and reads 1e-5 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str) -> Any:
    """Parse YAML; raises InputError with file and line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        told = str(error).replace('"<unicode string>"', where)
        raise InputError(f"{where}: not valid YAML: {told}") from error


def read_text(path: Path, what: str, way_out: str = "") -> str:
    """A file that the user named, as text; raises InputError when it is not there (and tells the `way_out`) or not
    UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{what} not found: {path} (looked in {Path.cwd()}){way_out and f'; {way_out}'}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} cannot be read: {path}: {error}") from error


def read_json(path: Path, what: str, way_out: str = "") -> Any:
    """Such a file as JSON; raises InputError where it is none, too."""
    text = read_text(path, what, way_out)
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def load_section(cls: type[SectionT], path: str | Path, overrides: Sequence[str] = ()) -> SectionT:
    """Read a closed section that lives in a file of its own, a recipe or an evaluation suite: field defaults, then the
    YAML file, then `section.key=value` (the value is YAML too).

    Raises InputError that names each wrong key and the nearest known one.
    """
    values = read_yaml(read_text(Path(path), cls.__name__.lower()), str(path))
    if not isinstance(values, dict):
        found = "it is empty" if values is None else f"this is a {type(values).__name__}"
        raise InputError(f"{path}: a {cls.__name__.lower()} maps keys to values, as in `name: mine`; {found}")
    for override in overrides:
        _apply(values, override)
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, values, item) for item in error.errors()]
        raise InputError(f"{path}: " + "\n".join(lines)) from None


def with_defaults(cls: type[SectionT], values: Any) -> Any:
    """Values that a section was written with, and the defaults of keys that came after that: these say what was done
    then. Values that a section of today would not take come back as they are."""
    try:
        return cls.model_validate(values).model_dump(mode="json")
    except ValidationError:
        return values


def _apply(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted or override.startswith("-"):
        raise InputError(f"{override!r}: overrides look like section.key=value, for example optim.lr=1e-5")
    _set(values, dotted.split("."), read_yaml(text, override), override)


def _set(here: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    key, *rest = keys
    if not rest:
        here[key] = value
        return
    if here.get(key) is None:
        here[key] = {}
    below = here[key]
    if isinstance(below, list) and below and all(isinstance(entry, dict) for entry in below):
        # Of a list of sections, the ones of this name, or all of them.
        named = [entry for entry in below if rest[0] == (entry.get("name") or entry.get("task"))]
        for entry in named or below:
            _set(entry, rest[1:] if named and len(rest) > 1 else rest, value, override)
    elif isinstance(below, dict):
        _set(below, rest, value, override)
    else:
        raise InputError(f"{override!r}: {key!r} is a value, not a section, so it has no key {rest[-1]!r}")


def _explain(cls: type[Section], values: dict[str, Any], item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = list(_keys(cls))
        leaf = str(item["loc"][-1])
        # The same key in another section is a likelier slip than a like-sounding one in this section.
        near = [key for key in known if _leaf(key) == leaf] or [
            ours for theirs, ours in cls.elsewhere.items() if theirs == leaf
        ]
        near = near or difflib.get_close_matches(re.sub(r"\.\d+", "", where), known, n=1, cutoff=0.6)
        if not near:
            leaves = difflib.get_close_matches(leaf, [_leaf(key) for key in known], n=1, cutoff=0.6)
            near = [key for key in known if _leaf(key) in leaves]
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {where!r}{hint}"
    if item["type"] == "missing":
        return f"{where!r} is missing"
    given = item.get("input")
    shown = "" if isinstance(given, dict) or item["type"] == "value_error" else f" (got {given!r})"
    told = item["msg"].removeprefix("Value error, ")
    return f"{where!r}: {told}{shown}" if where else told


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def _keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def to_yaml(section: Section) -> str:
    """Every value of a section, so that nothing depends on defaults of another version."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
