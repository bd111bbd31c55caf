import pytest
from reading import reason

from dft_mm.data.layouts.choose import Layout
from dft_mm.data.layouts.rows import parse
from dft_mm.data.records import BadRow


def refusal(messages, images=()):
    return reason("messages", {"messages": messages, "images": list(images)})


def said(*turns):
    return [{"role": role, "content": content} for role, content in turns]


Q, A = ("user", "q"), ("assistant", "a")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (said(Q, A), None),
        (said(("system", "s"), Q, A, Q, A), None),
        (said(("system", ""), Q, A), None),
        ([], "no_answer"),
        (said(Q), "no_answer"),
        (said(Q, A, Q), "no_answer"),
        (said(Q, ("assistant", "")), "no_answer"),
        (said(Q, ("assistant", None)), "no_answer"),
        (said(Q, ("assistant", " \n"), Q, A), "no_answer"),
        (said(A), "no_question"),
        (said(("system", "s"), A), "no_question"),
        (said(("user", " "), A), "no_question"),
        (said(("human", "q"), ("gpt", "a")), "unknown_role"),
        (said(Q, ("critic", "x"), A), "unknown_role"),
        (said((None, "q"), A), "unknown_role"),
        (said(Q, ("system", "s"), A), "late_system"),
        (said(("system", "s"), ("system", "t"), Q, A), "late_system"),
        (said(("user", "half \ud83d"), A), "lone_surrogate"),
        (said(Q, ("assistant", "\udc00")), "lone_surrogate"),
        (said(("user", "whole \U0001f600"), A), None),
    ],
)
def test_what_every_conversation_must_be(messages, expected):
    assert refusal(messages) == expected


def test_a_picture_alone_is_a_question():
    assert refusal(said(("user", "<image>"), A), ["a.png"]) is None
    assert refusal(said(("user", "<image>"), A), ["\ud800.png"]) == "image_path"


@pytest.mark.parametrize("value", [[], "x", 3, None])
def test_a_row_is_an_object(value):
    with pytest.raises(BadRow) as error:
        parse(value, Layout("messages"))
    assert error.value.reason == "not_object"
