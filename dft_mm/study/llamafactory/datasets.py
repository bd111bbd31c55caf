"""LLaMA-Factory's data sets, by their names in a dataset_info.json, as sources of a recipe."""

from pathlib import Path
from typing import Any

from dft_mm.data.layouts.llamafactory import INFO, entry_of
from dft_mm.study.llamafactory.refused import DATASET_INFO, LEFT_OUT, Refused
from dft_mm.study.llamafactory.values import listed


def train(dataset: Any, folder: str, media: str | None, most: int | None, info: Path | None) -> Any:
    if not dataset:
        raise Refused("there is no dataset to learn from")
    return _sources(dataset, folder, media, most, info)


def heldout(dataset: Any, folder: str, media: str | None, most: int | None, info: Path | None) -> Any:
    return _sources(dataset, folder, media, most, info) if dataset else LEFT_OUT


def _sources(dataset: Any, folder: str, media: str | None, most: int | None, info: Path | None) -> list[dict[str, Any]]:
    names = listed("dataset", dataset)
    if not isinstance(folder, str) or folder.startswith("REMOTE:"):
        raise Refused(f"dataset_dir {folder!r}: fetch its {INFO} and name it by {DATASET_INFO}")
    if folder == "ONLINE" and info is None:
        return [{"path": name, "format": "alpaca"} | ({"limit": most} if most else {}) for name in names]
    info = info or Path(folder) / INFO
    if not info.is_file():
        raise Refused(f"{info} is not there, which says where data sets are: name it by {DATASET_INFO} FILE")
    return [_source(info, name, media, most) for name in names]


def _source(info: Path, name: str, media: str | None, most: int | None) -> dict[str, Any]:
    entry, where = entry_of(info, name), f"{info}: {name!r}"
    for key in ("script_url", "cloud_file_name", "folder"):
        if entry.get(key):
            raise Refused(f"{where}: {key} is not read; fetch the rows, and give their file as file_name")
    if entry.get("num_samples"):
        raise Refused(f"{where}: num_samples draws rows at random; take it out, and use max_samples, the first rows")
    if entry.get("ranking"):
        raise Refused(f"{where} is of preferences, which LLaMA-Factory does not read in stage sft either")
    if entry.get("hf_hub_url"):
        made = {"path": entry["hf_hub_url"]}
        made |= {key: entry[key] for key in ("split", "subset") if entry.get(key)}
    elif entry.get("file_name"):
        made = {"path": str(info.parent / entry["file_name"])}
    else:
        raise Refused(f"{where} has neither file_name nor hf_hub_url; fetch the rows, and give their file as file_name")
    made["dataset_info"] = f"{info}#{name}"
    columns = entry.get("columns", {})
    if not isinstance(columns, dict):
        raise Refused(f"{where}: columns maps names to names; this is {columns!r}")
    if columns.get("images"):
        made["images"] = str(media or info.parent)
    return made | ({"limit": most} if most else {})
