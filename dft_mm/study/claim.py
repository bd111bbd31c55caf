"""A folder that holds one thing, made in one way."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dft_mm.atomic import write_atomically
from dft_mm.errors import InputError
from dft_mm.sections import Section, with_defaults


def claim(
    folder: Path, what: str, settings: Mapping[str, Any], sections: Mapping[str, type[Section]] = MappingProxyType({})
) -> None:
    """Write down what a folder is for, as `WHAT.json`; it may be gone on with as long as the settings stay.

    Args:
        sections: settings that are sections: a key that one of them has got since the folder was claimed is no change
            as long as it has its default.

    Raises InputError when it holds something else, or the same made otherwise.
    """
    wanted = json.loads(json.dumps(settings))
    path = folder / f"{what}.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        found |= {key: with_defaults(section, found.get(key)) for key, section in sections.items()}
        pairs = {key: (found.get(key), value) for key, value in wanted.items()}
        changed = [f"{key}: {_short(old)} -> {_short(new)}" for key, (old, new) in pairs.items() if old != new]
        if changed:
            raise InputError(
                f"{folder} holds a {what} made otherwise ({'; '.join(changed)}); remove it, or give another --out"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no {what}; give another --out")
    else:
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
