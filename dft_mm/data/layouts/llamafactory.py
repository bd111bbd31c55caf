"""LLaMA-Factory's dataset_info.json: how it says that a file beside it is to be read."""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dft_mm.config import SourceConfig
from dft_mm.errors import InputError

INFO = "dataset_info.json"
_COLUMNS = (
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
)  # fmt: skip
_TAGS = (
    "role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag",
)  # fmt: skip
_FORMATTINGS = ("alpaca", "sharegpt", "openai")
# Where LLaMA-Factory would fetch the file from; it is here.
_PLACES = (
    "file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "script_url", "subset", "split",
    "folder", "revision",
)  # fmt: skip
_ENTRY = (*_PLACES, "formatting", "ranking", "columns", "tags", "num_samples")


@dataclass(frozen=True)
class Entry:
    """One entry, under LLaMA-Factory's own names and with its defaults; a column that is None is not read."""

    name: str
    formatting: str = "alpaca"
    ranking: bool = False
    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


def find_entry(file: Path, source: SourceConfig) -> Entry | None:
    """The entry that the source names, or that for the file in the dataset_info.json beside it; None: there is none.

    Raises InputError for an entry that says what is not read here, or entries that disagree about the file.
    """
    if source.dataset_info is not None:
        info, name = named_entry(source.dataset_info)
        return _read(f"{info}: {name!r}", name, entry_of(info, name), source)
    info = file.parent / INFO
    if not info.is_file():
        return None
    entries = _entries(info, f"mend it, or name the `format` of {file.name}")
    # The datasets library writes another file of this name beside its tables; nothing in it has a file_name.
    named = {
        name: entry
        for name, entry in (entries.items() if isinstance(entries, dict) else ())
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
        and (info.parent / entry["file_name"]).resolve() == file.resolve()
    }  # fmt: skip
    found = [_read(f"{info}: {name!r}", name, entry, source) for name, entry in named.items()]
    said = {tuple(getattr(entry, field.name) for field in fields(Entry)[1:]) for entry in found}
    if len(said) > 1:
        raise InputError(
            f"{info}: the entries {', '.join(map(repr, named))} say different things of {file.name}; keep one of "
            "them, or name the `format` in the recipe"
        )
    return found[0] if found else None


def named_entry(dataset_info: str) -> tuple[Path, str]:
    """FILE#NAME in its two parts."""
    file, _, name = dataset_info.rpartition("#")
    return Path(file), name


def entry_of(info: Path, name: str) -> dict[str, Any]:
    """What a dataset_info.json has under a name, unchecked; raises InputError when that is nothing."""
    entries = _entries(info, "mend it")
    if not isinstance(entries, dict) or not isinstance(entries.get(name), dict):
        near = difflib.get_close_matches(name, entries, n=1) if isinstance(entries, dict) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{info} has no data set {name!r}{hint}")
    return entries[name]


def _entries(info: Path, way_out: str) -> Any:
    try:
        return json.loads(info.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{info} cannot be read: {error}; {way_out}") from error


def _read(where: str, name: str, entry: Mapping[str, Any], source: SourceConfig) -> Entry:
    _known(where, entry, _ENTRY)
    formatting, ranking = entry.get("formatting", "alpaca"), entry.get("ranking", False)
    if formatting not in _FORMATTINGS:
        raise InputError(f"{where}: formatting {formatting!r} is not known; known are {', '.join(_FORMATTINGS)}")
    if not isinstance(ranking, bool):
        raise InputError(f"{where}: ranking is true or false, not {ranking!r}")
    if entry.get("num_samples") is not None and source.limit is None:
        raise InputError(f"{where}: num_samples is not read; take it out and give the source a `limit`")
    values: dict[str, Any] = {"name": name, "formatting": formatting, "ranking": ranking}
    for group, known in (("columns", _COLUMNS), ("tags", _TAGS)):
        given = entry.get(group, {})
        if not isinstance(given, dict):
            raise InputError(f"{where}: {group} maps names to names; this is {given!r}")
        _known(f"{where}: {group}", given, known)
        if not all(isinstance(value, str) for value in given.values()):
            raise InputError(f"{where}: {group} maps names to names; this is {given!r}")
        if group == "columns" and given:  # then those that it does not name are not read
            values |= dict.fromkeys(_COLUMNS)
        values |= given
    made = Entry(**values)
    wanted = ["messages"] if formatting != "alpaca" else ["prompt"] if ranking else ["prompt", "response"]
    for column in [*wanted, *(["chosen"] if ranking else [])]:
        if getattr(made, column) is None:
            raise InputError(f"{where}: its columns name no {column!r}, so there is nothing to learn")
    return made


def _known(where: str, given: Iterable[str], known: Iterable[str]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise InputError(f"{where}: unknown key {key!r}{hint}")
