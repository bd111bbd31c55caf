"""What holds for both games: which instances are made for what, how they are put, and how a response is read."""

import json
import time

import pytest

from dft_mm.errors import InputError
from dft_mm.evaluate.games import make, verify
from dft_mm.evaluate.games.demonstrations import demonstrations
from dft_mm.evaluate.games.play import GAMES, problem
from dft_mm.evaluate.games.wording import GENERAL_POINTS, SOKOBAN

BOTH = pytest.mark.parametrize("task", ["general_points", "sokoban"])
EVERY = pytest.mark.parametrize(("task", "split"), [(task, split) for task in GAMES for split in GAMES[task].splits])
POINTS = {"numbers": [1, 2, 4, 8], "target": 24}
BOARD = {"board": "#####\n#@$.#\n#   #\n#####"}


def _kinds(rows):
    """States up to order, turns and reflections, found here anew."""

    def turned(board):
        lines = [list(line) for line in board.split("\n")]
        for _ in range(4):
            lines = [[line[i] for line in reversed(lines)] for i in range(len(lines[0]))]
            yield json.dumps(lines)
            yield json.dumps(lines[::-1])

    return {
        min(turned(row["state"]["board"])) if row["task"] == "sokoban" else str(sorted(row["state"]["numbers"]))
        for row in rows
    }


@EVERY
def test_rows_are_decided_by_game_split_and_seed(task, split):
    rows = make(task, split=split, n=60, seed=3)
    assert make(task, split=split, n=60, seed=3) == rows
    assert make(task, split=split, n=20, seed=3) == rows[:20]
    assert make(task, split=split, n=0, seed=3) == []
    assert len({row["id"] for row in rows}) == 60
    other = make(task, split=split, n=60, seed=4)
    assert sum(a["state"] == b["state"] for a, b in zip(rows, other)) < 5
    assert json.loads(json.dumps(rows)) == rows
    assert {"id", "task", "split", "state", "answer", "problem", "solution"} <= set(rows[0])


def test_rows_stay_what_they_are():
    # A change here makes results incomparable with those of before.
    points, board = make("general_points", n=1)[0], make("sokoban", n=1)[0]
    assert (points["cards"], points["answer"]) == (["2", "6", "4", "5"], "((6 * 5) - 4) - 2")
    assert (board["state"]["board"], board["answer"]) == (
        "######\n# @ ##\n#  # #\n#  $ #\n#  . #\n######",
        "DDDRRULDLLUURDLDR",
    )


@BOTH
def test_no_evaluation_kind_is_demonstrated_and_no_shift_is_learned(task):
    shown = demonstrations(task, 1000, seed=0) + demonstrations(task, 200, seed=1)
    asked = make(task, n=1000, seed=0) + make(task, n=200, seed=7)
    assert not _kinds(shown) & _kinds(asked)
    for split in GAMES[task].splits[1:]:
        assert not _kinds(make(task, split=split, n=400)) & (_kinds(shown) | _kinds(asked))


def test_states_differ_for_as_long_as_there_are_different_ones(monkeypatch):
    # There are some 5,000 states of the learned split, and twice as many hands.
    rows = make("general_points", n=10_000)
    assert len({json.dumps(row["state"]) for row in rows[:3000]}) == 3000
    assert len({tuple(row["cards"]) for row in rows}) == 10_000
    monkeypatch.setattr("dft_mm.evaluate.games.play._PATIENCE", 5)
    with pytest.raises(InputError, match="general_points, split in_distribution: no more different"):
        make("general_points", n=28_561)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make("chess"), "unknown game 'chess'.*general_points, sokoban"),
        (lambda: make("sokoban", split="five_cards"), "no split 'five_cards'.*larger_board"),
        (lambda: make("sokoban", n=-1), "n is -1"),
        (lambda: verify("chess", {}, ""), "unknown game 'chess'"),
        (lambda: demonstrations("sokoban", 1, style="long"), "style is 'long'.*answer_only"),
        (lambda: demonstrations("sokoban", 1, prompts="many"), "prompts is 'many'.*diverse"),
        (lambda: demonstrations("sokoban", 1, pictures="red"), "pictures is 'red'.*other_colours"),
    ],
)
def test_what_there_is_not_is_refused_by_name(call, words):
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize(
    ("response", "status", "extracted"),
    [
        ("Answer: R", "correct", "R"),
        ("Answer:R", "correct", "R"),
        ("Answer: U\nNo.\nAnswer: R", "correct", "R"),
        ("Answer: R\nNo.\nAnswer: U", "wrong", "U"),
        ("The Final Answer:\n\n  R  \nwhich pushes the box.", "correct", "R"),
        ("**Answer:** R", "correct", "R"),
        ("**Answer: R**", "correct", "R"),
        ("Answer: R.", "correct", "R"),
        ("Answer: `R`", "correct", "R"),
        (r"Answer: $\boxed{R}$.", "correct", "R"),
        (r"Answer: \boxed{R}", "correct", "R"),
        ("Answer: R**", "wrong", "R**"),
        ("Answer: R\r\n", "correct", "R"),
        ("R", "no_answer", None),
        ("", "no_answer", None),
        ("answer: R", "no_answer", None),
        ("Answer: R\nAnswer:", "no_answer", None),
        ("Answer: \n \n", "no_answer", None),
        ("Answer: $", "no_answer", None),
        (r"Answer: \boxed{}", "no_answer", None),
        ("Answer: .", "no_answer", None),
    ],
)
def test_what_follows_the_last_mark_is_the_answer(response, status, extracted):
    grade = verify("sokoban", BOARD, response)
    assert (grade.status, grade.extracted) == (status, extracted)


def test_a_response_without_answer_that_was_cut_is_truncated():
    assert verify("sokoban", BOARD, "Let me think", "length").status == "truncated"
    assert verify("sokoban", BOARD, "Answer: R", "length").status == "correct"
    assert verify("sokoban", BOARD, "Answer: U", "length").status == "wrong"


MIB = 1 << 20
HOSTILE = [
    "(" * 10_000 + "(8-2)*4*1" + ")" * 10_000, "(" * MIB, ")" * MIB, "(8" * MIB, "8-(" * 300_000, "-" * MIB,
    "8*" * 500_000, "9**9**9**9", "1" + "0" * 100_000, "9" * MIB, "8/(4-4)", "1/(8-4*2)", "8 " * MIB, "=" * MIB,
    "= 24" * 200_000, "$" * MIB, "`" * MIB, "." * MIB, "*" * MIB, r"\boxed{" * 150_000, "Answer:" * 150_000, "\n" * MIB,
    "\r" * MIB, " " * MIB + "8", "\0", "８－２", "𝟖-𝟐", "८-२", "\ud800", "\u202e42", "1e5", "{numbers}", "%s",
    "__import__('os').system('true')", "U" * MIB, "UD" * MIB, ", " * MIB, "DRRLLU" * 200_000,
    "R" + "L" * MIB, "x" * MIB,
]  # fmt: skip


@BOTH
@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_no_response_raises_or_takes_long(task, answer):
    state = POINTS if task == "general_points" else BOARD
    start = time.process_time()
    grade = verify(task, state, f"Answer: {answer}")
    nested = task == "general_points" and answer.startswith("(") and answer.endswith(")") and "-2)*4" in answer
    assert grade.status == "correct" if nested else grade.status in ("wrong", "no_answer", "correct")
    assert (grade.status == "correct") == (nested)
    assert grade.extracted is None or len(grade.extracted) <= 501
    assert len(grade.detail) < 200
    assert time.process_time() - start < 5  # against what grows with the square or the power of its length


@EVERY
def test_wordings_say_the_rule_and_pictures_leave_the_state_out(task, split):
    row = make(task, split=split, n=1)[0]
    wordings = {"general_points": GENERAL_POINTS, "sokoban": SOKOBAN}[task]
    texts = [
        (template, template.format(**GAMES[task].words(row, pictured)), pictured)
        for template in (*wordings.seen, *wordings.unseen)
        for pictured in (False, True)
    ]
    for template, text, pictured in texts:
        assert "{shown}" in template
        assert "Answer:" in text
        if task == "sokoban":
            assert (row["state"]["board"] in text) != pictured
            assert all(letter in text for letter in "UDLR")
            assert not pictured or "#" not in text
        else:
            assert (", ".join(row["cards"]) in text) != pictured
            assert "24" in text
            assert all(number in text for number in (("11", "12", "13") if split == "face_cards" else ("10",)))


@BOTH
def test_unseen_wordings_are_in_no_demonstration(task):
    wordings = GAMES[task].wordings

    def sentences(templates):
        return {sentence for template in templates for sentence in template.replace("\n", ". ").split(". ")}

    assert sentences(wordings.seen) & sentences(wordings.unseen) == {"{shown}"}
    row = make(task, n=1)[0]
    assert row["problem"] == problem(row) == wordings.seen[0].format(**GAMES[task].words(row, False))
    rows = make(task, n=200)
    fields = [GAMES[task].words(row, False) for row in rows]
    for instructions, templates in (("seen", wordings.seen), ("unseen", wordings.unseen)):
        used = [
            next(n for n, template in enumerate(templates) if template.format(**words) == problem(row, instructions))
            for row, words in zip(rows, fields)
        ]
        assert set(used) == set(range(len(templates)))
