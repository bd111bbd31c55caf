"""Which parameters learn, and how fast."""

import pytest

from dft_mm.config import OptimConfig
from dft_mm.errors import InputError
from dft_mm.families import part_of
from dft_mm.model.folder import read_family
from dft_mm.model.freeze import freeze, parameter_groups
from dft_mm.model.load import load_model


def test_frozen_parts_do_not_learn_and_the_rest_does(folder):
    model, family = load_model(folder), read_family(folder)
    freeze(model, family, ["embeddings"])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (part_of(family, name) != "embeddings")


def test_impossible_freezing_is_refused(folder):
    model, family = load_model(folder), read_family(folder)
    if not family.has_vision:
        with pytest.raises(InputError, match="no part 'vision'"):
            freeze(model, family, ["vision"])
    with pytest.raises(InputError, match="nothing to learn"):
        freeze(model, family, list(family.parts))


def test_each_part_has_its_rate_and_vectors_are_not_decayed(folder):
    model, family = load_model(folder), read_family(folder)
    groups = parameter_groups(model, family, OptimConfig(lr=1.0, vision_lr=2.0, projector_lr=3.0, weight_decay=0.1))
    rates = {"vision": 2.0, "projector": 3.0}
    seen = {id(p): (g["peak_lr"], g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    names = dict(model.named_parameters())
    assert len(seen) == len(names) == sum(len(group["params"]) for group in groups)
    for name, parameter in names.items():
        rate = rates.get(part_of(family, name), 1.0)
        assert seen[id(parameter)] == (rate, rate, 0.1 if parameter.ndim > 1 else 0.0)
