import numpy as np
import pytest

from dft_mm.data.preparing.groups import group, hold_out, repeats
from dft_mm.errors import InputError


def test_rows_that_share_a_key_through_others_are_one_group():
    rows = [["a"], ["b", "x"], ["a", "y"], ["c"], ["x", "z"], ["z", "y"], []]
    groups = group(rows)
    assert len({groups[n] for n in (0, 1, 2, 4, 5)}) == 1
    assert len(set(groups.tolist())) == 3


def test_groups_equal_those_of_a_plain_search():
    draw = np.random.default_rng(0)
    rows = [draw.integers(0, 60, draw.integers(0, 3)).tolist() for _ in range(80)]
    expected = list(range(80))
    for _ in range(80):  # spread the least number along shared keys until nothing changes
        for a in range(80):
            for b in range(80):
                if set(rows[a]) & set(rows[b]):
                    expected[a] = min(expected[a], expected[b])
    assert group(rows).tolist() == expected


def test_a_held_out_share_is_made_of_whole_groups_and_drawn_by_seed():
    groups = np.arange(300) // 3 * 3
    names = [f"row{n}" for n in range(300)]
    held = hold_out(groups, names, 0.2, seed=0)
    assert held.sum() == 60
    assert all(held[n] == held[groups[n]] for n in range(300))
    assert held.tolist() == hold_out(groups, names, 0.2, seed=0).tolist()
    assert held.tolist() != hold_out(groups, names, 0.2, seed=1).tolist()


def test_one_large_group_does_not_keep_the_share_from_being_drawn():
    groups = np.array([0] * 90 + list(range(90, 100)))
    held = hold_out(groups, [str(n) for n in range(100)], 0.05, seed=0)
    assert held.sum() == 5
    assert not held[:90].any()


@pytest.mark.parametrize(
    ("groups", "fraction", "message"),
    [([0] * 10, 0.3, "asks for 3 of 10 rows, and the smallest group .* has 10"), (range(4), 0.99, "leaves no row")],
)
def test_a_share_that_cannot_be_drawn_is_refused(groups, fraction, message):
    groups = np.array(groups)
    with pytest.raises(InputError, match=message):
        hold_out(groups, [str(n) for n in range(len(groups))], fraction, seed=0)


def test_repeats_point_at_the_first_of_their_kind():
    content = np.array([7, 3, 7, 9, 3, 7], dtype=np.uint64)
    assert repeats(content).tolist() == [0, 1, 0, 3, 1, 0]
