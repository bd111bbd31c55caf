"""The package's data side for a trainer of one's own: checked rows, masks from the model's own template, packing.

    python examples/collator_alone.py scripts/recipes/tiny_lm_cpu.yaml data.train='[{path: examples/sums.jsonl}]'

`prepare` has read and checked every row once; `Dataset` maps the result into memory, so a million rows cost nothing
until they are asked for.
"""

import argparse
from pathlib import Path

from torch.utils.data import DataLoader

from dft_mm.batch import Batch
from dft_mm.config import load_recipe
from dft_mm.data.dataset import Dataset
from dft_mm.model.processing import load_processing
from dft_mm.train.feed import image_settings, make_collator, prepare_data


def main(words: list[str] | None = None) -> list[Batch]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--batches", type=int, default=2)
    given = parser.parse_args(words)

    recipe = load_recipe(given.recipe, given.overrides)
    processing = load_processing(recipe.model.path)
    prepare_data(recipe, processing)
    dataset = Dataset(recipe.run_dir / "data", "train", image_settings(recipe, processing))
    loader = DataLoader(dataset, batch_size=4, shuffle=True, collate_fn=make_collator(recipe, processing))
    told = []
    for batch, _ in zip(loader, range(given.batches)):
        told.append(batch)
        print(f"{len(batch.example_ids)} examples in a row of {batch.input_ids.shape[1]} tokens, ending at")
        print(f"  {batch.cu_seqlens.tolist()}; learned: {processing.tokenizer.decode(batch.targets)!r}")
    return told


if __name__ == "__main__":
    main()
