"""The model card of an exported folder (README.md in the hub's format). It is made of values that are the same whenever
the same checkpoint is exported: no time, no host, no command line, and no path of the machine that trained.

It lies beside export.py, and not in report/, because a run writes it with its last step; scores come as a table from
whoever may read both.
"""

import importlib.resources
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCardData, metadata_load

import dft_mm
from dft_mm.config import Recipe
from dft_mm.dist import log
from dft_mm.families import Family

FILE = "README.md"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE")
_LICENCE_KEYS = ("license", "license_name", "license_link")
_KNOWN_LICENCES = {"Apache License": "apache-2.0", "MIT License": "mit"}
"""By their first words."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def model_card(
    recipe: Recipe, base: Path, family: Family, manifest: Mapping[str, Any], step: int, loss: str, merged: bool = False,
    scores: str = "",
) -> str:  # fmt: skip
    """The text of the card.

    Args:
        base: folder of the model that was trained.
        manifest: of the prepared data.
        loss: what the recipe's loss is, in words.
        merged: the adapter is added to the weights.
        scores: a table in Markdown, where some were measured.
    """
    adapter = recipe.model.lora is not None and not merged
    on_hub = base != Path(recipe.model.path) and not recipe.model.path.startswith("builtin:")
    sources = [_source(source, number, manifest) for number, source in enumerate(manifest["sources"])]
    licence = licence_of(base)
    data = ModelCardData(
        base_model=recipe.model.path if on_hub else None,
        datasets=list(dict.fromkeys(each["name"] for each in sources if each["on_hub"])) or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text" if family.has_vision else "text-generation",
        tags=["dft_mm", recipe.loss.name, *(["lora"] if recipe.model.lora else [])],
        **licence,
    )
    template = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    ).from_string(importlib.resources.files("dft_mm.model").joinpath("templates", "card.md.jinja").read_text("utf-8"))
    return template.render(
        metadata=data.to_yaml(), recipe=recipe, loss=" ".join(loss.split()), step=step, sources=sources, scores=scores,
        manifest=manifest, adapter=adapter, merged=merged, vision=family.has_vision, model_class=family.model_class,
        base=recipe.model.path if on_hub else Path(recipe.model.path).name, on_hub=on_hub, licence=licence,
        version=dft_mm.__version__,
    )  # fmt: skip


def licence_of(folder: Path) -> dict[str, str]:
    """`license`, and `license_name` and `license_link` where there are some, as the folder's own card says, else by its
    licence file; empty where nothing is known.
    """
    if (folder / FILE).is_file():
        try:
            said = metadata_load(folder / FILE) or {}
        except (yaml.YAMLError, ValueError) as error:
            # No reason to fail after a run's last step.
            log.warning("%s: what it says of a licence cannot be read: %s", folder / FILE, " ".join(str(error).split()))
            said = {}
        found = {key: str(said[key]) for key in _LICENCE_KEYS if said.get(key)}
        if found:
            return found
    for name in LICENCES[:3]:
        if (folder / name).is_file():
            opening = " ".join((folder / name).read_text(encoding="utf-8", errors="replace")[:500].split())
            known = [licence for words, licence in _KNOWN_LICENCES.items() if words in opening[:100]]
            return {"license": known[0]} if known else {"license": "other", "license_link": name}
    return {}


def _source(source: Mapping[str, Any], number: int, manifest: Mapping[str, Any]) -> dict[str, Any]:
    path = source["path"]
    files = [part["file"] for part in manifest["parts"] if part["source"] == number]
    on_hub = bool(_HUB_NAME.fullmatch(path)) and bool(files) and not any(file.startswith(path) for file in files)
    refused = Counter(source["quarantined"]).most_common()
    return dict(source) | {
        "name": path if on_hub else Path(path).name,
        "on_hub": on_hub,
        "refused": ", ".join(f"{reason} {count}" for reason, count in refused) or "none",
    }
