"""Rows as the model will see them: ids, what is supervised, pictures and where each row came from."""

import base64
import io
import json
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from rich.console import Console
from rich.text import Text

from dft_mm.config import Recipe
from dft_mm.data.dataset import Dataset
from dft_mm.data.images import ImageError, load_image
from dft_mm.errors import InputError
from dft_mm.model.processing import Processing, load_processing
from dft_mm.train.feed import prepare_data

_ROWS = 5
_PAGE_ROWS = 50
_THUMBNAIL = 480  # pixels of the longer side
_REFUSED = 20


def print_json(recipe: Recipe, rows: int | None, row_id: str | None = None) -> None:
    """One object a line on standard output: the contract of `inspect --json`."""
    processing = load_processing(recipe.model.path)
    prepare_data(recipe, processing)
    for row in islice(_rows(recipe, row_id), rows):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def print_rows(recipe: Recipe, rows: int | None, row_id: str | None = None) -> None:
    """Rows for reading: supervised text is green, a picture is one word with its number of tokens."""
    processing = load_processing(recipe.model.path)
    prepare_data(recipe, processing)
    console = Console(highlight=False)
    for row in islice(_rows(recipe, row_id), rows or _ROWS):
        console.rule(f"{row['id']}  ({_place(row)})", align="left")
        console.print(_about(row), style="dim")
        for image in row["images"]:
            console.print(f"{image['path']}: {' x '.join(map(str, image['grid']))} patches", style="dim")
        text = Text()
        for run in _runs(row, processing):
            text.append(run["text"], style={"learned": "green", "image": "cyan"}.get(run["kind"], ""))
        console.print(text)


def write_html(recipe: Recipe, out: Path, rows: int | None, row_id: str | None = None) -> None:
    """The same as one page that opens offline, with the pictures, what was counted and what was refused."""
    processing = load_processing(recipe.model.path)
    manifest = prepare_data(recipe, processing)
    shown = []
    for row in islice(_rows(recipe, row_id), rows or _PAGE_ROWS):
        pictures = [{**image, "thumbnail": _thumbnail(Path(image["path"]))} for image in row["images"]]
        shown.append(
            {"id": row["id"], "place": _place(row), "about": _about(row), "runs": _runs(row, processing)}
            | {"split": row["split"], "images": pictures}
        )
    with (recipe.run_dir / "data" / "quarantine.jsonl").open(encoding="utf-8") as lines:
        refused = [json.loads(line) for line in islice(lines, _REFUSED)]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("dft_mm.study", ""), autoescape=True)
    page = environment.get_template("inspect.html.jinja").render(
        recipe=recipe, manifest=manifest, rows=shown, refused=refused
    )
    out.write_text(page, encoding="utf-8")


def _rows(recipe: Recipe, row_id: str | None) -> Iterator[dict[str, Any]]:
    """All rows in file order, or the one with this id."""
    dataset = Dataset(recipe.run_dir / "data", "all", None)
    sources = [*recipe.data.train, *recipe.data.heldout]
    for index in range(len(dataset)) if row_id is None else [_find(dataset, row_id)]:
        where = dataset.meta(index)
        ids, supervised = dataset.tokens(index)
        heldout = bool(dataset.heldout[index])
        loss = sources[dataset.sources[index]].loss or recipe.loss
        yield {
            "id": where["id"],
            "source": where["source"],
            "file": where["file"],
            "row": where["row"],
            "ids": ids.tolist(),
            "supervised": supervised.astype(int).tolist(),
            "images": where["images"],
            "loss": "sft" if heldout else loss.name,
            "line": where["line"],
            "split": "heldout" if heldout else "train",
            "overlap": where["overlap"],
        }


def _find(dataset: Dataset, row_id: str) -> int:
    found = dataset.find(row_id)
    if found is None:
        near = ", ".join(dataset.id(index) for index in range(min(3, len(dataset))))
        raise InputError(f"--row {row_id}: no prepared row has this id; the first are {near}")
    return found


def _place(row: dict[str, Any]) -> str:
    return f"{row['file']} " + (f"line {row['line']}" if row["line"] else f"row {row['row']}")


def _about(row: dict[str, Any]) -> str:
    """Lengths, loss and what is remarkable of a row."""
    parts = [f"{len(row['ids'])} tokens", f"{sum(row['supervised'])} supervised", f"loss {row['loss']}"]
    parts += ["held out"] * (row["split"] == "heldout")
    parts += [f"shares 13 words with {row['overlap']}"] if row["overlap"] else []
    return ", ".join(parts)


def _runs(row: dict[str, Any], processing: Processing) -> list[dict[str, str]]:
    """The row's text in runs of one kind: learned, image or plain."""
    runs = []
    for (learned, is_image), run in groupby(
        zip(row["ids"], row["supervised"]), key=lambda pair: (pair[1], pair[0] == processing.image_token_id)
    ):
        ids = [id_ for id_, _ in run]
        text = f"{processing.image_token} x {len(ids)}" if is_image else processing.tokenizer.decode(ids)
        runs.append({"text": text, "kind": "learned" if learned else "image" if is_image else "plain"})
    return runs


def _thumbnail(path: Path) -> str | None:
    """A small PNG or JPEG of a picture as a data URI; None when it is not there any more."""
    try:
        picture = load_image(path.name, path.parent)
    except ImageError:
        return None
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
