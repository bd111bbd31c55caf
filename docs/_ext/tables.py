"""Markdown of what the code defines: recipe keys, losses, commands, layouts, LLaMA-Factory's keys."""

import argparse
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dft_mm import config
from dft_mm.arguments import parser


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def recipe() -> str:
    return "\n".join(_sections(config.Recipe, "", "The recipe itself"))


_AS = {"data.heldout": "data.train", "data.train[].loss": "loss"}
"""Sections that have the same keys as another one."""


def _sections(section: type[BaseModel], prefix: str, title: str) -> Iterator[str]:
    """A table of a section's keys, and those of the sections in it."""
    yield f"## {title}\n"
    yield table(
        ["key", "type and limits", "default", "what it is"],
        [(f"`{prefix}{name}`", _type(field.annotation) + _limits(field), _default(field), _about(prefix + name, field))
         for name, field in section.model_fields.items()],
    )  # fmt: skip
    for name, field in section.model_fields.items():
        below = _section_of(field.annotation)
        if below is not None and prefix + name not in _AS:
            key = prefix + name + ("[]" if _is_list(field.annotation) else "")
            yield from _sections(below, f"{key}.", f"`{key}`")


def _about(key: str, field: FieldInfo) -> str:
    same = f" The same keys as `{_AS[key]}`." if key in _AS else ""
    return (field.description or "") + same


def _is_list(annotation: Any) -> bool:
    return typing.get_origin(annotation) is list


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, be it alone, optional or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = [_section_of(argument) for argument in typing.get_args(annotation)]
    return next((each for each in found if each), None)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("`null`" if argument is type(None) else _type(argument) for argument in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(map(_type, arguments))}]"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "`true`, `false`"}[annotation.__name__]


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _limits(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(limit, name):.10g}" for limit in field.metadata for name, sign in _SIGNS.items()
        if getattr(limit, name, None) is not None
    ]  # fmt: skip
    found += [f"like `{limit.pattern}`" for limit in field.metadata if getattr(limit, "pattern", None)]
    found += [f"at least {limit.min_length}" for limit in field.metadata if getattr(limit, "min_length", None)]
    return f", {', '.join(found)}" if found else ""


def _flow(value: Any) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(needed)"
    if isinstance(field.default, BaseModel):
        return ""
    return f"`{_flow(field.default)}`"


def losses() -> str:
    from dft_mm.loss.family import FORMS

    numbers = {name: config.LOSS_NUMBERS.get(name, {}) for name in FORMS}
    rows = [
        (f"`{name}`", form.about, ", ".join(f"`{key}` {_number(value)}" for key, value in numbers[name].items()))
        for name, form in FORMS.items()
    ]
    return table(["name", "what it is", "its numbers and their defaults"], rows)


def _number(value: Any) -> str:
    return "the base model" if value is None else str(list(value) if isinstance(value, tuple) else value)


def commands() -> str:
    verbs = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    return "\n".join(_verb(name, verb) for name, verb in verbs.items())


def _verb(name: str, verb: argparse.ArgumentParser) -> str:
    usage = " ".join(verb.format_usage().removeprefix("usage: ").split())
    options = [
        (", ".join(f"`{word}`" for word in action.option_strings or [action.metavar or action.dest]), action.help or "")
        for action in verb._actions if action.dest != "help"
    ]  # fmt: skip
    example = (verb.epilog or "").removeprefix("example:\n")
    lines = "\n".join(line.strip() for line in example.splitlines())
    parts = [f"## {name}", verb.description or "", _text(usage), table(["", ""], options), _text(lines), ""]
    return "\n\n".join(parts)


def _text(lines: str) -> str:
    return f"```text\n{lines}\n```"


def layouts() -> str:
    from dft_mm.data.layouts.choose import RULES

    return table(["`format`", "taken by `auto` when rows have"], [(f"`{rule.format}`", rule.wants) for rule in RULES])


def llamafactory() -> str:
    from dft_mm.study.llamafactory.keys import CONVERTED

    def theirs(keys: Iterable[str]) -> str:
        return ", ".join(f"`{key}`" for key in keys)

    rows = [(theirs(each.theirs), f"`{each.ours}`", each.note) for each in CONVERTED]
    return table(["theirs", "ours", ""], rows)


def llamafactory_refused() -> str:
    from dft_mm.study.llamafactory.keys import REFUSED

    ways: dict[str, list[str]] = {}
    for key, off in REFUSED.items():
        ways.setdefault(off.instead, []).append(key)
    return table(["refused where it is on", "what to do"],
                 [(", ".join(f"`{key}`" for key in keys), way) for way, keys in ways.items()])  # fmt: skip


TABLES: dict[str, Callable[[], str]] = {
    "recipe": recipe, "losses": losses, "commands": commands, "layouts": layouts, "llamafactory": llamafactory,
    "llamafactory_refused": llamafactory_refused,
}  # fmt: skip
