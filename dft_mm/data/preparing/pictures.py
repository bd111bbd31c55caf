"""What the picture files of a data set were found to be, in a journal: each is decoded once, and again only when it
has changed.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from dft_mm.atomic import replacing
from dft_mm.data.images import ImageError, decode_image, image_hash, read_image

Key: TypeAlias = tuple[str, str]
"""Root folder and path below it."""


@dataclass(frozen=True)
class Look:
    """A picture file that was looked at."""

    stamp: tuple[int, ...] | None
    """What changes when the file changes; None: there is none to be seen."""
    sha256: str = ""
    width: int = 0
    height: int = 0
    reason: str = ""
    """Why it cannot be used; empty: it can."""
    detail: str = ""


def look(key: Key) -> Look:
    """Read and decode a picture file, whatever comes of it."""
    root, name = key
    stamp = picture_stamp(key)  # before reading: a change in between will be noticed
    try:
        data = read_image(name, Path(root))
        picture = decode_image(data, name)
    except ImageError as error:
        return Look(stamp, reason=error.reason, detail=error.detail)
    return Look(stamp, image_hash(data), *picture.size)


def picture_stamp(key: Key) -> tuple[int, ...] | None:
    """Size, times of change and inode of the file; equal ones mean that nobody wrote to it."""
    try:
        found = os.stat(os.path.join(*key))  # noqa: PTH116, PTH118 - a million of them
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


class Pictures:
    """All that have been looked at, on the disk too: what is added survives a kill.

    The journal has one JSON list a line; a torn last line is a picture that will be looked at again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looks: dict[Key, Look] = {}
        if path.is_file():
            with path.open("rb") as file:
                for line in file:
                    try:
                        root, name, stamp, *rest = json.loads(line)
                        self._looks[root, name] = Look(None if stamp is None else tuple(stamp), *rest)
                    except (ValueError, TypeError):
                        continue

    def __getitem__(self, key: Key) -> Look:
        return self._looks[key]

    def __len__(self) -> int:
        return len(self._looks)

    def stale(self, keys: Iterable[Key]) -> list[Key]:
        """Those that were never looked at, or have changed since."""
        return [key for key in keys if (known := self._looks.get(key)) is None or known.stamp != picture_stamp(key)]

    def unchanged(self) -> bool:
        return not self.stale(self._looks)

    def add(self, looks: Iterable[tuple[Key, Look]]) -> Iterator[Key]:
        """Take in what was found, as it comes."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n")  # should a kill have torn the last line; an empty one says nothing
            for key, found in looks:
                self._looks[key] = found
                file.write(_line(key, found))
                file.flush()
                yield key

    def keep(self, keys: set[Key]) -> None:
        """Forget all others."""
        if keys != self._looks.keys():
            self._looks = {key: found for key, found in self._looks.items() if key in keys}
            with replacing(self._path) as file:
                file.writelines(_line(*item).encode() for item in self._looks.items())


def _line(key: Key, found: Look) -> str:
    return json.dumps([*key, found.stamp, found.sha256, found.width, found.height, found.reason, found.detail]) + "\n"
