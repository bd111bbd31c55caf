"""`dft-mm import-recipe`: a training file of LLaMA-Factory as a recipe. What a key becomes: llamafactory/keys.py."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dft_mm.config import Recipe
from dft_mm.errors import InputError
from dft_mm.sections import read_text, read_yaml
from dft_mm.study.llamafactory.keys import CONVERTED, NOTED, REFUSED, Becomes
from dft_mm.study.llamafactory.refused import DATASET_INFO, GPUS, LEFT_OUT, Refused

_KEYS = {key for each in CONVERTED for key in each.theirs if not key.startswith("--")}
KNOWN = _KEYS | REFUSED.keys() | NOTED.keys()
"""Every argument of LLaMA-Factory that is known, by name."""

_SECRET = ("token", "api_key", "secret", "webhook_url")  # ends of keys whose values are nobody's business


@dataclass(frozen=True)
class Line:
    """One key of the recipe."""

    ours: str
    value: Any
    origin: str
    note: str


def import_recipe(path: Path, dataset_info: Path | None = None, gpus: int | None = None) -> str:
    """The recipe's text.

    Raises InputError that names every key which would change the result and cannot be converted, with what to do
    instead, and every key that is not known.
    """
    theirs = read_yaml(read_text(path, "training file"), str(path))
    if not isinstance(theirs, dict) or not all(isinstance(key, str) for key in theirs):
        raise InputError(f"{path}: a training file maps keys to values")
    lines, wrong = [], list(_unknown(theirs)) + list(_refused(theirs))
    said = theirs | {DATASET_INFO: dataset_info, GPUS: gpus}
    for each in CONVERTED:
        try:
            value = each.value(*(said.get(key, default) for key, default in each.theirs.items()))
        except (Refused, InputError) as error:
            wrong.append(str(error))
        except (TypeError, ValueError):  # a word where a number belongs
            given = {key: theirs[key] for key in each.theirs if key in theirs}
            if not given:  # LLaMA-Factory's defaults fit
                raise
            wrong.append(f"{given} cannot be read as {each.ours}")
        else:
            if value is not LEFT_OUT:
                lines.append(Line(each.ours, value, _origin(each, theirs), each.note if each.matters(value) else ""))
    if wrong:
        shown = "\n".join(f"  {text}" for text in dict.fromkeys(wrong))
        raise InputError(f"{path} cannot be converted as it is:\n{shown}")
    text = "".join(f"{line}\n" for line in _text(path, lines, theirs))
    _check(path, text, lines)
    return text


def _unknown(theirs: dict[str, Any]) -> Iterator[str]:
    for key in (key for key in theirs if key not in KNOWN):
        near = difflib.get_close_matches(key, KNOWN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "take it out if it does not matter"
        yield f"unknown key {key!r}: {hint}"


def _refused(theirs: dict[str, Any]) -> Iterator[str]:
    for key in theirs:
        if key in REFUSED and not _is_off(key, theirs[key]):
            yield f"{key}: {_flow(theirs[key])}: {REFUSED[key].instead}"


def _is_off(key: str, value: Any) -> bool:
    return any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in REFUSED[key].values)


def _origin(each: Becomes, theirs: dict[str, Any]) -> str:
    """Where a value comes from, for a comment."""
    there = [key for key in each.theirs if key in theirs or key.startswith("--")]
    named = [key for key in there if not key.startswith("--") or key == GPUS]
    return ", ".join(named) or "LLaMA-Factory's default"


def _check(path: Path, text: str, lines: list[Line]) -> None:
    """Raise InputError when what was made is no recipe, as with a number out of range."""
    try:
        Recipe.model_validate(read_yaml(text, f"the recipe made of {path}"))
    except ValidationError as error:
        origins = {line.ours: line.origin for line in lines}
        wrong = []
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            origin = next((origin for ours, origin in origins.items() if where.startswith(ours)), "")
            wrong.append(f"{where} ({origin}): {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})")
        raise InputError(f"{path}: " + "\n".join(wrong)) from None


def _text(path: Path, lines: list[Line], theirs: dict[str, Any]) -> Iterator[str]:
    yield f"# {path.name} of LLaMA-Factory, by `dft-mm import-recipe`. Behind each value: the key that it was made of."
    section = ""
    for line in lines:
        above, _, key = line.ours.rpartition(".")
        if above and above != section:
            yield f"{above}:"
        section = above
        indent = "  " if above else ""
        if isinstance(line.value, list) and line.value and isinstance(line.value[0], dict):
            yield f"{indent}{key}:  # {line.origin}"
            yield from (f"{indent}  - {_flow(entry)}" for entry in line.value)
        else:
            yield f"{indent}{key}: {_flow(line.value)}  # {line.origin}"
    notes = [f"{line.ours}: {line.note}" for line in lines if line.note]
    yield from _remarks("Worth knowing:", notes)
    yield from _remarks(
        "Not in the recipe, since it changes no result or is said elsewhere:",
        [f"{key}: {_shown(key, value)}: {NOTED[key]}" for key, value in theirs.items() if key in NOTED],
    )
    yield from _remarks(
        "As it always is here:", [f"{key}: {_flow(value)}" for key, value in theirs.items() if key in REFUSED]
    )


def _remarks(title: str, remarks: list[str]) -> list[str]:
    # A value of several lines would go on outside the comment.
    return [f"# {title}", *(f"#   {' '.join(remark.split())}" for remark in remarks)] if remarks else []


def _shown(key: str, value: Any) -> str:
    return "…" if value and key.endswith(_SECRET) else _flow(value)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()
