"""A model folder → what turns conversations into model inputs: its tokenizer, chat template and image numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dft_mm.errors import InputError
from dft_mm.families import Family
from dft_mm.model.chat_template import chat_template
from dft_mm.model.folder import read_config, read_family, resolve
from dft_mm.sections import read_json


@dataclass(frozen=True)
class Processing:
    """All that turns conversations into model inputs."""

    folder: Path
    family: Family
    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    """Jinja source: the model's own, or a default for a base text model without one."""
    image_token: str | None
    """The placeholder that stands for one merged patch; None for text models."""
    image_token_id: int | None
    image_config: dict[str, Any] | None
    """preprocessor_config.json; None for text models."""
    window_size: int | None
    """Side of a window of the vision tower's attention, in pixels; None for text models."""


def load_processing(path: str | Path, weights: bool = True) -> Processing:
    """Tokenizer, chat template and image numbers; of a hub id the weights are fetched along unless told otherwise."""
    folder = resolve(str(path), weights)
    family = read_family(folder)
    # transformers makes an empty tokenizer of a folder without one, and says nothing.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        raise InputError(f"{folder}: has no tokenizer (tokenizer.json); copy the base model's tokenizer files there")
    config = read_config(folder)
    try:
        # With the config of its base, an adapter's tokenizer is of the class that the base's is.
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: needs a tokenizer.json (a fast tokenizer)")
    image_token_id = image_token = image_config = window_size = None
    if family.has_vision:
        image_config = read_json(folder / "preprocessor_config.json", "model file")
        image_token_id, window_size = config.image_token_id, config.vision_config.window_size
        image_token = tokenizer.convert_ids_to_tokens(image_token_id)
    template = chat_template(folder, family, tokenizer)
    return Processing(folder, family, tokenizer, template, image_token, image_token_id, image_config, window_size)
