"""The chat template of a model folder: its own, or for a base text model without one a default that is said aloud.

Base models of Qwen's vocabulary know the control tokens of ChatML; all others get the form that DeepSeekMath learned.
"""

import importlib.resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.families import Family
from dft_mm.sections import read_json, read_text

FILE = "chat_template.jinja"
_LEGACY, _TOKENIZER = "chat_template.json", "tokenizer_config.json"
_CHATML = ("<|im_start|>", "<|im_end|>")
_SHOWN = {
    "default_chatml.jinja": "<|im_start|>user ... <|im_end|> <|im_start|>assistant ... <|im_end|>",
    "default_plain.jinja": "User: ... Assistant: ... and the end-of-text token",
}


def chat_template(folder: Path, family: Family, tokenizer: PreTrainedTokenizerBase) -> str:
    """Jinja source of a folder's template, or of the default; raises InputError where there can be none."""
    own = own_template(folder)
    if own is not None:
        return own
    way_out = f"put the {FILE} of the model it was made from into the folder"
    if family.has_vision:
        raise InputError(f"{folder}: has no chat template, and how {family.name} shows pictures varies; {way_out}")
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if special.issuperset(_CHATML):
        name = "default_chatml.jinja"
    elif tokenizer.eos_token in special:
        name = "default_plain.jinja"
    else:
        raise InputError(
            f"{folder}: has no chat template, and its tokenizer has no special token that could end an answer "
            f"(eos_token is {tokenizer.eos_token!r}); {way_out}"
        )
    log.info("%s has no chat template; conversations are written in the default form: %s", folder, _SHOWN[name])
    return importlib.resources.files("dft_mm.model").joinpath("templates", name).read_text(encoding="utf-8")


def own_template(folder: Path) -> str | None:
    """The template that the folder brings, from the file that transformers would take."""
    found = {name: source for name in (FILE, _LEGACY, _TOKENIZER) if (source := _read(folder / name)) is not None}
    if not found:
        return None
    name, source = next(iter(found.items()))
    others = [other for other, text in found.items() if text != source]
    if others:  # whoever edits one of them must learn which one counts
        log.info("%s: the chat template is that of %s; %s holds another, which is not used", folder, name, others[0])
    return source


def _read(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.name == FILE:
        return read_text(path, "chat template")
    said = read_json(path, "chat template")
    if not isinstance(said, dict):
        raise InputError(f"{path}: a JSON object is expected, and this is a {type(said).__name__}")
    source: Any = said.get("chat_template")
    if isinstance(source, list):  # several, each with a name
        source = {each["name"]: each["template"] for each in source}
    if isinstance(source, dict):
        if "default" not in source:
            raise InputError(f"{path}: has chat templates {', '.join(source)} and none of the name 'default'")
        source = source["default"]
    return source
