"""Runs of one recipe in one folder, which differ in their name and what is said on the command line."""

import json

from rows import write_wethink


class Runs:
    """`recipe` is the recipe's file: the tiny VL model on WeThink rows, ZeRO-3, and the sections that are given."""

    def __init__(self, folder, repo, free_port, model, data, optim, train):
        self.folder, self.free_port = folder, free_port
        rows = write_wethink(folder / "data")
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(
            f"""
name: unset
output: {folder}/{{name}}
deepspeed: {repo}/ds_configs/zero3.json
model: {{path: builtin:tiny-vl, dtype: float32, {model}}}
data:
  train: [{{path: {rows}, format: wethink, images: {folder}/data/images}}]
  max_length: 256
  {data}
loss: {{name: dft}}
optim: {{{optim}}}
train: {{{train}}}
"""
        )

    def path(self, name):
        return self.folder / name

    def status(self, name):
        path = self.path(name) / "STATUS.json"
        return json.loads(path.read_text()) if path.is_file() else {"state": None, "step": 0, "reason": ""}

    def metrics(self, name):
        path = self.path(name) / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def weights(self, name):
        (file,) = (self.path(name) / "export").glob("*model.safetensors")
        return file.read_bytes()

    def checkpoints(self, name):
        return sorted(path.name for path in (self.path(name) / "checkpoints").glob("step-*"))
