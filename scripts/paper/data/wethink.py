"""WeThink for Table 4 (section 4.4) → data/wethink/wethink.jsonl, its columns kept, and its pictures below
data/wethink/images.

    python -m scripts.paper.data.wethink

The rows are those of yangjie-cv/WeThink_Multimodal_Reasoning_120K, the pictures those of Xkev/LLaVA-CoT-100k: one zip
archive in 16 parts, 171 GB (github.com/yangjie-cv/WeThink, README.md). It is read where it lies, and only what the rows
name is unpacked. Rows whose picture it lacks, and those without a thought or an answer to learn, are left out. The file
images.sha256 lists the pictures. Killed, the script goes on where it was.
"""

import hashlib
import io
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dft_mm.atomic import replacing, write_atomically
from dft_mm.errors import InputError
from scripts.paper.data.derive import Derived, Place, log, main
from scripts.paper.data.rows import Row, filled
from scripts.paper.data.sources import Hub

ROWS = Hub("yangjie-cv/WeThink_Multimodal_Reasoning_120K", ("WeThink_Multimodal_Reasoning_120K.jsonl",))
PICTURES = Hub("Xkev/LLaVA-CoT-100k", tuple(f"image.zip.part-a{letter}" for letter in "abcdefghijklmnop"))
LIST = "images.sha256"
_CHUNK = 1 << 20


class Joined(io.RawIOBase):
    """Files laid end to end, to read from."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files = [path.open("rb") for path in paths]
        self._starts, self._size = [], 0
        for path in paths:
            self._starts.append(self._size)
            self._size += path.stat().st_size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        number = bisect_right(self._starts, self._position) - 1
        self._files[number].seek(self._position - self._starts[number])
        read = self._files[number].readinto(buffer)
        self._position += read
        return read

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()


class Archive:
    """The pictures of an archive by the paths that rows name.

    Its paths may all be below one folder, which is then left away: whether they are, its authors do not say.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(Joined(parts), _CHUNK))
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{parts[0].parent}: {parts[0].name} to {parts[-1].name} are no zip archive together ({error}); "
                "fetch or copy them again"
            ) from error
        members = {member.filename: member for member in self._zip.infolist() if not member.is_dir()}
        tops = {name.partition("/")[0] for name in members}
        below = f"{tops.pop()}/" if len(tops) == 1 else ""
        self._members = members | {name.removeprefix(below): member for name, member in members.items()}

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def some_path(self) -> str:
        return next(iter(self._members), "nothing")

    def unpack(self, name: str, path: Path) -> str:
        """Write a picture, unless it is there and whole; its SHA-256. Raises InputError for a damaged archive."""
        member = self._members[name]
        if path.is_file() and path.stat().st_size == member.file_size:
            content = path.read_bytes()
            if zlib.crc32(content) == member.CRC:
                return hashlib.sha256(content).hexdigest()
        try:
            content = self._zip.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(
                f"image.zip: {member.filename} is damaged ({error}); fetch or copy its parts again"
            ) from error
        with replacing(path) as file:
            file.write(content)
        return hashlib.sha256(content).hexdigest()


def unlearnable(row: Row) -> str | None:
    """Why nothing can be learned from a row, whatever its picture."""
    from dft_mm.data.layouts.formats import wethink
    from dft_mm.data.records import BadRow

    try:
        wethink(row)
    except BadRow as bad:
        return bad.detail
    if not filled(row, "image_path"):
        return "no picture"
    parts = PurePosixPath(row["image_path"])
    return "its picture's path leads out of the folder" if parts.is_absolute() or ".." in parts.parts else None


def with_pictures(rows: Iterable[Row], place: Place) -> Iterator[Row | str]:
    """The rows whose pictures are there, unpacked by then; the list of pictures at the end."""
    hashes: dict[str, str] = {}
    missing: list[str] = []
    with Archive([place.files[name] for name in PICTURES.files]) as archive:
        for row in rows:
            if (reason := unlearnable(row)) is not None:
                yield reason
                continue
            path = row["image_path"]
            if path not in archive:
                missing.append(path)
                yield "its picture is not in the archive"
                continue
            if path not in hashes:
                hashes[path] = archive.unpack(path, place.out / "images" / path)
            yield row
        if missing:
            log.info("%s is not in the archive; what is there looks like %s", missing[0], archive.some_path())
    write_atomically(place.out / LIST, "".join(f"{hashes[path]}  images/{path}\n" for path in sorted(hashes)))


WETHINK = Derived(
    name="wethink",
    folder="data/wethink",
    file="wethink.jsonl",
    source=ROWS,
    columns=("problem", "answer", "refined_cot", "image_path"),
    convert=with_pictures,
    beside=(PICTURES,),
    lists=(LIST,),
)

if __name__ == "__main__":
    raise SystemExit(main(WETHINK, __doc__))
