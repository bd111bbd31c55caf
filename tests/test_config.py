"""The recipe: closed, frozen, documented, and clear about what is wrong."""

import pytest
import yaml

from dft_mm import config
from dft_mm.config import Recipe, load_recipe
from dft_mm.errors import InputError
from dft_mm.sections import Section, read_yaml, to_yaml

MINIMAL = """
name: run
model: {path: builtin:tiny-lm}
data:
  train: [{path: rows.jsonl, format: messages}]
"""


def sections(cls=Section):
    for sub in cls.__subclasses__():
        yield sub
        yield from sections(sub)


@pytest.fixture
def load(tmp_path):
    def load(text=MINIMAL, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path, overrides)

    return load


def message(load, text, *overrides):
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    return str(caught.value)


def test_defaults_then_file_then_overrides(load):
    recipe = load(MINIMAL + "optim: {lr: 2.0e-5, clip: 0.5}", "optim.lr=3e-5", "loss.name=sft", "seed=7")
    assert (recipe.optim.lr, recipe.optim.clip, recipe.optim.batch_size) == (3e-5, 0.5, 256)
    assert (recipe.loss.name, recipe.seed) == ("sft", 7)
    assert recipe.run_dir.as_posix() == "runs/run"


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("optim.lr=1e-5", lambda r: r.optim.lr, 1e-5),
        ("optim.lr=1E-05", lambda r: r.optim.lr, 1e-5),
        ("optim.lr=+2e0", lambda r: r.optim.lr, 2.0),
        ("model.freeze=[vision, projector]", lambda r: r.model.freeze, ["vision", "projector"]),
        ("model.lora.rank=4", lambda r: r.model.lora.rank, 4),
        ("model.lora=null", lambda r: r.model.lora, None),
        ("model.path=1e5-model", lambda r: r.model.path, "1e5-model"),
        ("data.train=[{path: 'a=b.jsonl', format: messages}]", lambda r: r.data.train[0].path, "a=b.jsonl"),
    ],
)
def test_override_values_are_yaml(load, override, read, expected):
    value = read(load(MINIMAL, override))
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("-2E+3", -2e3), ("1e5-model", "1e5-model"), ("e5", "e5")])
def test_a_number_may_have_an_exponent_without_a_point(text, value):
    read = read_yaml(f"key: {text}", "here")["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("override", "wrong", "right"),
    [
        ("optim.lrr=1", "optim.lrr", "optim.lr"),
        ("lr=1", "lr", "optim.lr"),
        ("train.lr=1", "train.lr", "optim.lr"),
        ("train.batch_size=8", "train.batch_size", "optim.batch_size"),
        ("modle={path: x}", "modle", "model"),
        ("loss.nmae=sft", "loss.nmae", "loss.name"),
        ("model.lora={rnk: 8}", "model.lora.rnk", "model.lora.rank"),
        ("data.train=[{path: a, format: messages, imagse: b}]", "data.train.0.imagse", "data.train.images"),
    ],
)
def test_an_unknown_key_suggests_the_right_one(load, override, wrong, right):
    text = message(load, MINIMAL, override)
    assert f"unknown key '{wrong}'" in text
    assert f"did you mean '{right}'?" in text


def test_a_word_of_another_tool_suggests_what_it_is_called_here(load):
    assert "did you mean 'data.max_length'?" in message(load, MINIMAL, "data.cutoff_len=9")
    for word, key in Recipe.elsewhere.items():
        assert f"did you mean '{key}'?" in message(load, MINIMAL, f"{word}=1")
        section, _, leaf = key.rpartition(".")
        assert leaf in (Recipe.model_fields[section].annotation if section else Recipe).model_fields


def test_every_wrong_key_is_named_with_the_file(load):
    text = message(load, MINIMAL, "optim.lr=-1", "train.epochs=zero", "seeed=1")
    for word in ("recipe.yaml", "'optim.lr'", "-1", "'train.epochs'", "'zero'", "'seeed'"):
        assert word in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nname: b", ["'name' is given twice", "line 2"]),
        ("optim: {lr: 1, lr: 2}", ["'lr' is given twice"]),
        ("name: [a", ["not valid YAML", "recipe.yaml, line 1"]),
        ("- a", ["maps keys to values", "list"]),
        ("", ["maps keys to values", "it is empty"]),
        ("name: run", ["'model' is missing", "'data' is missing"]),
    ],
)
def test_a_file_that_is_no_recipe(load, text, words):
    said = message(load, text)
    for word in ["recipe.yaml", *words]:
        assert word in said


def test_a_missing_file_is_named_with_the_folder_it_was_looked_for_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"recipe not found: no/such.yaml.*{tmp_path}"):
        load_recipe("no/such.yaml")


@pytest.mark.parametrize("override", ["optim.lr", "=3", "--seed=3", "name.first=x", "optim.lr=[1"])
def test_a_bad_override_is_quoted(load, override):
    assert override in message(load, MINIMAL, override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.max_length=9000", ["data.max_length (9000)", "train.micro_tokens (8192)", "raise micro_tokens"]),
        ("data.min_pixels=2000000", ["min_pixels (2000000)", "max_pixels (1003520)"]),
        ("data.train=[{path: a, format: columns}]", ["columns", "exactly when format is `columns`"]),
        ("data.train=[{path: a, format: messages, columns: {prompt: p, response: r}}]", ["exactly when"]),
        ("data={train: [{path: a, format: messages}], heldout: [{path: b, format: messages}], heldout_fraction: 0.1}",
         ["heldout files or heldout_fraction"]),
        ("data.train=[{path: a, dataset_info: info.json}]", ["FILE#NAME", "info.json"]),
        ("data.train=[{path: a, dataset_info: 'info.json#a', format: sharegpt}]", ["format (sharegpt)", "give one"]),
        ("data.train=[]", ["data.train"]),
        ("data.train=[{path: a, format: csvv}]", ["data.train.0.format", "'csvv'", "messages"]),
        ("loss.name=dtf", ["loss.name", "'dtf'", "'sft', 'dft', 'power'"]),
        ("optim.lr=.inf", ["optim.lr", "finite"]),
        ("name=../up", ["'name'", "../up"]),
        ("train.keep=1", ["train.keep", "2", "(got 1)"]),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_together_are_refused(load, override, words):
    text = message(load, MINIMAL, override)
    for word in words:
        assert word in text


def test_columns_may_be_named_as_people_name_them(load):
    source = load(MINIMAL, "data.train=[{path: a, format: columns, columns: {question: q, answer: a}}]").data.train[0]
    assert (source.columns.prompt, source.columns.response) == ("q", "a")


def test_a_recipe_is_frozen(load):
    recipe = load()
    for section, name in ((recipe, "seed"), (recipe.optim, "lr"), (recipe.data.train[0], "path")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(section, name, 1)


def test_the_resolved_recipe_has_every_value_and_reads_back_the_same(load):
    recipe = load(MINIMAL, "model.lora.rank=4", "optim.lr=1e-5", "data.heldout_fraction=0.25")
    text = to_yaml(recipe)
    assert load(text) == recipe
    assert set(yaml.safe_load(text)["optim"]) == set(config.OptimConfig.model_fields)


def test_columns_read_back_the_same(load):
    recipe = load(MINIMAL, "data.train=[{path: a, format: columns, columns: {question: q, answer: a, image: i}}]")
    assert load(to_yaml(recipe)) == recipe


def test_every_field_says_what_it_is():
    own = [cls for cls in sections() if cls.__module__ == config.__name__]
    assert Recipe in own
    for cls in own:
        for name, field in cls.model_fields.items():
            # A nested section is described by its own fields.
            assert field.description or field.annotation in own, f"{cls.__name__}.{name} has no docstring"


def test_loading_has_no_side_effects(load, tmp_path):
    load()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
