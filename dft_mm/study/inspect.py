"""Rows as the model will see them: ids, what is supervised, pictures and where each row came from."""

import json
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

from rich.console import Console
from rich.text import Text

from dft_mm.config import Recipe
from dft_mm.data.dataset import Dataset
from dft_mm.model.load import Processing, load_processing
from dft_mm.train.feed import prepare_data

_ROWS = 5


def print_json(recipe: Recipe, rows: int | None) -> None:
    """One object a line on standard output: the contract of `inspect --json`."""
    for row in islice(_rows(recipe, load_processing(recipe.model.path)), rows):
        sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def print_rows(recipe: Recipe, rows: int | None) -> None:
    """Rows for reading: supervised text is green, a picture is one word with its number of tokens."""
    processing = load_processing(recipe.model.path)
    console = Console(highlight=False)
    for row in islice(_rows(recipe, processing), rows or _ROWS):
        learned = sum(row["supervised"])
        console.rule(f"{row['id']}  ({row['file']} row {row['row']})", align="left")
        console.print(f"{len(row['ids'])} tokens, {learned} supervised, loss {row['loss']}", style="dim")
        for image in row["images"]:
            console.print(f"{image['path']}: {' x '.join(map(str, image['grid']))} patches", style="dim")
        console.print(_coloured(row, processing))


def _coloured(row: dict[str, Any], processing: Processing) -> Text:
    text = Text()
    for (learned, is_image), run in groupby(
        zip(row["ids"], row["supervised"]), key=lambda pair: (pair[1], pair[0] == processing.image_token_id)
    ):
        ids = [id_ for id_, _ in run]
        shown = f"{processing.image_token} x {len(ids)}" if is_image else processing.tokenizer.decode(ids)
        text.append(shown, style="green" if learned else "cyan" if is_image else "")
    return text


def _rows(recipe: Recipe, processing: Processing) -> Iterator[dict[str, Any]]:
    """All rows, those learned from first, each split in file order."""
    prepare_data(recipe, processing)
    for split in ("train", "heldout"):
        dataset = Dataset(recipe.run_dir / "data", split, None)
        for index in range(len(dataset)):
            where = dataset.meta(index)
            ids, supervised = dataset.tokens(index)
            yield {
                "id": where["id"],
                "source": where["source"],
                "file": where["file"],
                "row": where["row"],
                "ids": ids.tolist(),
                "supervised": supervised.astype(int).tolist(),
                "images": where["images"],
                "loss": recipe.loss.name if split == "train" else "sft",
                "split": split,
            }
