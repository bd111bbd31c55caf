"""Folders, patterns and hub names → the files of rows that they stand for; never some of them unnoticed."""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dft_mm.config import SourceConfig
from dft_mm.data.reading.json_files import Damaged
from dft_mm.data.reading.text_files import KNOWN
from dft_mm.data.reading.unpack import inner_suffix

ROW_NAMES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather"}
SHEETS = {".xlsx", ".xls", ".ods"}
_BESIDE = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}  # they describe rows
_LEFT_BY_MAP = re.compile(r"(cache-|tmp).*\.arrow")  # `datasets` leaves them in its cache: the same rows once more
_SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip


def in_folder(folder: Path, split: str) -> list[Path]:
    """The row files of a folder.

    What `datasets` saved; else the files in it; else the `data.json` of the folders below it (one row each: IconQA,
    Geometry3K); else the files below it. Where their names tell several splits apart, those of `split`.
    """
    if (folder / "dataset_dict.json").is_file():
        names = _described(folder / "dataset_dict.json", "splits")
        if split not in names:
            raise Damaged(f"has no split {split!r}; there are {', '.join(map(str, names))}")
        folder = folder / split
    if (folder / "state.json").is_file():
        return [folder / file["filename"] for file in _described(folder / "state.json", "_data_files")]
    files = _row_files(folder, (file.name for file in folder.iterdir()))
    if not files:
        for place, below, names in os.walk(folder):
            below[:] = [name for name in below if not name.startswith(".")]
            files += _row_files(Path(place), names)
        files = [file for file in files if file.name == "data.json"] or files
    if not files:
        raise Damaged(f"is a folder without files of rows; {KNOWN}")
    return _of_one_kind(_of_split(sorted(files), folder, split))


def matching(pattern: Path) -> list[Path]:
    """The files that a pattern names; all of them must be rows."""
    found = map(Path, glob.glob(str(pattern), recursive=True))  # noqa: PTH207 (a Path globs below a folder only)
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise Damaged(f"matches no file (looked in {Path.cwd()})")
    return _of_one_kind(files)


def fetch(source: SourceConfig) -> list[Path]:
    """The Arrow files of a data set of the hub, in the cache of `datasets`."""
    if not re.fullmatch(r"\w+(\.\w+)*", source.split):
        raise Damaged(f"has no split {source.split!r}; name a whole one, and cut it by `limit`")
    import datasets  # seconds; only a hub name needs it

    try:
        found = datasets.load_dataset(source.path, source.subset, split=source.split, keep_in_memory=False)
    except Exception as error:  # it raises whatever its parts raise
        raise Damaged(
            f"is not here, and as a hub name cannot be fetched: {error}; "
            "mend the path, or fetch it once where there is a network"
        ) from error
    return [Path(file["filename"]) for file in found.cache_files]


def _row_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Those that by their names hold rows, or would in a form that is not read."""
    files = [folder / name for name in names if not name.startswith(".") and name not in _BESIDE]
    found = [file for file in files if inner_suffix(file) in ROW_NAMES | SHEETS and not _LEFT_BY_MAP.match(file.name)]
    return [file for file in found if file.is_file()]


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    """Training files are not mixed with test files: where the names tell them apart, those of one split."""
    words = {file: re.split(r"[^a-z]+", str(file.relative_to(folder)).lower()) for file in files}
    splits = {file: {_SPLITS[word] for word in words[file] if word in _SPLITS} for file in files}
    names = sorted(set().union(*splits.values()))
    if len(names) < 2:
        return files
    unclear = next((file for file in files if len(splits[file]) != 1), None)
    if unclear:
        raise Damaged(f"has files of {' and '.join(names)}, and {unclear.name} may be any's; name some by a pattern")
    taken = [file for file in files if splits[file] == {_SPLITS.get(split, split)}]
    if not taken:
        raise Damaged(f"has no split {split!r}; there are {', '.join(names)}")
    return taken


def _of_one_kind(files: list[Path]) -> list[Path]:
    kinds = Counter(".jsonl" if (suffix := inner_suffix(file)) == ".ndjson" else suffix for file in files)
    if len(kinds) > 1:
        shown = ", ".join(f"{count} {kind or 'without suffix'}" for kind, count in sorted(kinds.items()))
        raise Damaged(f"stands for files of several kinds ({shown}); name one by a pattern such as `folder/*.json`")
    unpacked = Counter(str(file)[: str(file).lower().rindex(inner_suffix(file))] for file in files)
    twice = next((name for name, count in unpacked.items() if count > 1), None)
    if twice is not None:
        raise Damaged(f"stands for {Path(twice).name} packed and unpacked; leave one out")
    return files


def _described(file: Path, key: str) -> list[Any]:
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"has a damaged {file.name}; save the data set again") from error
