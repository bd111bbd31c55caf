"""Names of models and what their folders say."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from dft_mm.errors import InputError
from dft_mm.model.folder import fingerprint, read_family, resolve


def test_unknown_names_folders_and_families_are_refused(tmp_path):
    with pytest.raises(InputError, match="builtin:tiny-vl"):
        resolve("builtin:huge")
    with pytest.raises(InputError, match="neither a folder"):
        resolve("./no/such/folder")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="'gpt2' is not supported"):
        read_family(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="model_type"):
        read_family(tmp_path)


def test_a_hub_id_is_read_without_its_weights(monkeypatch):
    import huggingface_hub

    asked = {}

    def refuse(path, allow_patterns):
        asked[path] = allow_patterns
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match="offline"):
        resolve("org/name", weights=False)
    assert "*.json" in asked["org/name"]
    assert not any("safetensors" in pattern for pattern in asked["org/name"])


def test_another_training_of_a_model_has_another_fingerprint(folder, tmp_path):
    before = fingerprint(folder)
    assert fingerprint(shutil.copytree(folder, tmp_path / "copy")) == before
    weights = load_file(folder / "model.safetensors")
    save_file({name: 1.001 * tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    changed = fingerprint(folder)
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b" ")
    assert len({before, changed, fingerprint(folder)}) == 3
