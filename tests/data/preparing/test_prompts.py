import collections

import pytest

from dft_mm.data.preparing.prompts import ask, draw, read_prompts
from dft_mm.errors import InputError

TEXT = {"type": "text", "text": "How many?"}
IMAGE = {"type": "image"}


def user(*parts):
    return {"role": "user", "content": list(parts)}


ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "3"}]}


def test_templates_are_lines_and_escaped_line_breaks_are_breaks(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Solve: {question}\n\n{question}\\nThink first.\n")
    assert read_prompts(str(file)) == ("Solve: {question}", "{question}\nThink first.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Solve it.\n", r":1: a template has \{question\} exactly once; this is 'Solve it.'"),
        ("ok {question}\n{question} {question}\n", ":2: a template has"),
        ("\n \n", "holds no template"),
    ],
)
def test_a_file_that_holds_no_templates_says_where(tmp_path, text, message):
    file = tmp_path / "prompts.txt"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_prompts(str(file))


def test_the_question_stands_inside_the_template_and_pictures_keep_their_place():
    asked = ask([user(IMAGE, TEXT), ANSWER], "Look. {question} Answer briefly.")
    assert asked == [user(IMAGE, {"type": "text", "text": "Look. How many? Answer briefly."}), ANSWER]
    split = ask([user({"type": "text", "text": "In "}, IMAGE, TEXT), ANSWER], "<{question}>")
    assert [part.get("text") for part in split[0]["content"]] == ["<In ", None, "How many?>"]


def test_only_the_first_question_is_changed_and_the_row_itself_never():
    messages = [{"role": "system", "content": [TEXT]}, user(TEXT), ANSWER, user(TEXT), ANSWER]
    asked = ask(messages, "A {question}")
    assert [message["content"][0]["text"] for message in asked] == ["How many?", "A How many?", "3", "How many?", "3"]
    assert TEXT["text"] == "How many?"


def test_a_question_that_is_a_picture_alone_gets_the_template_beside_it():
    assert ask([user(IMAGE), ANSWER], "Solve {question}.")[0]["content"] == [IMAGE, {"type": "text", "text": "Solve ."}]


def test_the_draw_depends_on_seed_and_row_and_reaches_all_templates_alike():
    templates = ("a {question}", "b {question}", "c {question}")
    drawn = [draw(templates, 0, "rows.jsonl", row) for row in range(3000)]
    assert drawn == [draw(templates, 0, "rows.jsonl", row) for row in range(3000)]
    assert drawn != [draw(templates, 1, "rows.jsonl", row) for row in range(3000)]
    assert all(900 < count < 1100 for count in collections.Counter(drawn).values())
