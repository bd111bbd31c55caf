"""--tiny: a recipe and a suite made small, and otherwise the real ones."""

import pytest

from dft_mm.config import load_recipe
from dft_mm.errors import InputError
from dft_mm.evaluate.suite import load_suite
from scripts.paper.experiment import REPO
from scripts.paper.tiny import tiny_changes, tiny_suite

RECIPES = {
    "math": "qwen2_5_math_1_5b_numinamath_dft.yaml", "code": "qwen2_5_coder_3b_ultrafeedback_dft.yaml",
    "multimodal": "qwen2_5_vl_3b_wethink_dft.yaml",
}  # fmt: skip
EACH = pytest.mark.parametrize("suite", RECIPES)


@EACH
def test_a_tiny_recipe_loads_and_is_small(shared, suite):
    recipe = load_recipe(REPO / "scripts/recipes" / RECIPES[suite], tiny_changes(suite, shared / "data"))
    (source,) = recipe.data.train
    assert (shared / "data").resolve() in REPO.joinpath(source.path).parents
    assert source.limit <= 64
    assert recipe.train.max_steps == 2


@EACH
def test_a_tiny_suite_asks_all_benchmarks_of_the_real_one(shared, tmp_path, suite):
    real, tiny = load_suite(suite), load_suite(tiny_suite(suite, shared / "data", tmp_path))
    assert [bench.key for bench in tiny.benchmarks] == [bench.key for bench in real.benchmarks]
    assert (tiny.name, tiny.averages) == (real.name, real.averages)
    for small, bench in zip(tiny.benchmarks, real.benchmarks):
        changed = {"data": small.data, "limit": small.limit}
        assert small.model_dump() == bench.model_dump() | changed
        assert REPO.joinpath(small.data).exists()
        assert small.limit <= 5
    assert tiny.sampling.max_tokens <= 16
    assert (tiny.sampling.samples > 1) == (real.sampling.samples > 1)  # so that columns are of the same kind
    assert tiny.sampling.temperature == real.sampling.temperature


def test_a_folder_without_the_sample_rows_is_told(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path}/train_text/numinamath_layout\.jsonl is not there.*--data DIR"):
        tiny_changes("math", tmp_path)
    with pytest.raises(InputError, match=rf"{tmp_path}/text_math/math_oai is not there.*--data DIR"):
        tiny_suite("math", tmp_path, tmp_path / "out")
