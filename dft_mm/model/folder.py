"""Where a model lies, and what its folder says of it: its config and its family, without loading a weight."""

import hashlib
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from dft_mm.errors import InputError
from dft_mm.families import FAMILIES, Family, family_of
from dft_mm.model.builtin import BUILTIN, builtin_folder
from dft_mm.sections import read_json

_BUILTIN, _ADAPTER = "builtin:", "adapter_config.json"
# What a hub folder may hold that is needed here: never code, never pickled weights.
_HUB_FILES_BESIDE_WEIGHTS = [
    "*.json", "*.jinja", "merges.txt", "tokenizer.model", "README.md", "LICENSE*", "NOTICE",
]  # fmt: skip
_HUB_FILES = [*_HUB_FILES_BESIDE_WEIGHTS, "*.safetensors"]


def resolve(path: str, weights: bool = True) -> Path:
    """The local folder of `builtin:NAME`, of a local path, or of a hub id (fetched when it is not in the cache, without
    its weights where they are not wanted).
    """
    if path.startswith(_BUILTIN):
        name = path.removeprefix(_BUILTIN)
        if name not in BUILTIN:
            raise InputError(
                f"model.path: no built-in model {name!r}; there are {', '.join(_BUILTIN + b for b in BUILTIN)}"
            )
        return builtin_folder(name)
    local = Path(path)
    if is_model_folder(local):
        return local
    if local.exists() or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(f"model.path: {path!r} is neither a folder with a config.json nor a hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=_HUB_FILES if weights else _HUB_FILES_BESIDE_WEIGHTS))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise InputError(
            f"model.path: {path!r} is no local folder and cannot be fetched from the hub: {error}"
        ) from error


def is_model_folder(folder: Path) -> bool:
    """Whether a model is there, or an adapter."""
    return any((folder / name).is_file() for name in ("config.json", _ADAPTER))


def adapter_base(folder: Path) -> str | None:
    """The model that the adapter in a folder belongs to, as `model.path` calls it; None where there is no adapter."""
    path = folder / _ADAPTER
    return read_json(path, "adapter config").get("base_model_name_or_path") if path.is_file() else None


def check_whole(folder: Path, where: str = "model.path") -> None:
    """Raises InputError for the folder of an adapter, where a model with all its weights is needed."""
    if (folder / _ADAPTER).is_file():
        raise InputError(
            f"{where}: {folder} is an adapter; `dft-mm export RUN --merge --out DIR` makes it a model with all weights"
        )


def _config_folder(folder: Path) -> Path:
    """Where a model's config.json lies: that of an adapter beside its base's weights."""
    base = None if (folder / "config.json").is_file() else adapter_base(folder)
    if base is None:
        return folder
    try:
        return resolve(base, weights=False)
    except InputError as error:
        told = str(error).removeprefix("model.path: ")
        raise InputError(f"{folder}: the base of this adapter is not to be had: {told}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a model folder, or of an adapter's base."""
    return AutoConfig.from_pretrained(_config_folder(folder))


def read_family(folder: Path) -> Family:
    """The family of a model folder, or of an adapter's base; raises InputError for one that is not supported."""
    path = _config_folder(folder) / "config.json"
    try:
        model_type = read_json(path, "model config")["model_type"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a model config with a model_type ({error!r})") from error
    family = family_of(model_type)
    if family is None:
        known = ", ".join(f"{f.model_type} ({f.name})" for f in FAMILIES)
        raise InputError(f"{path}: model_type {model_type!r} is not supported; there are {known}")
    return family


def fingerprint(folder: Path) -> str:
    """Of a folder's weights, without reading all of them: one page of each 16 MiB tells one training from another."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for start in range(0, size, 16 * 2**20):
                file.seek(start)
                digest.update(file.read(4096))
    return digest.hexdigest()
