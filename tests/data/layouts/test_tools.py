"""Tools and thoughts as text: equal, character for character, to what Qwen2.5's own text template makes of them."""

import copy
import json
from pathlib import Path

import pytest
from reading import learned, read, reason, shown
from transformers.utils.chat_template_utils import render_jinja_template

from dft_mm.data.layouts.tools import DEFAULT_SYSTEM
from dft_mm.data.render import Renderer
from dft_mm.model.processing import load_processing

TEMPLATE = (Path(__file__).parent / "qwen2_5_instruct.jinja").read_text()
TOOLS = [
    {"type": "function", "function": {"name": "wetter", "description": "Wetter in <Köln> & „Umgebung“", "parameters": {
        "type": "object", "properties": {"ort": {"type": "string", "enum": ["Köln", "Bonn"]}}, "required": ["ort"]}}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip


def call(name="wetter", **arguments):
    return {"type": "function", "id": "1", "function": {"name": name, "arguments": arguments}}


def said(role, content=None, **more):
    return {"role": role, "content": content, **more}


def official(messages, tools=None):
    """The text of a conversation, the plain strings of its messages and its tools given to the template."""
    rendered, _ = render_jinja_template([messages], tools=tools, chat_template=TEMPLATE)
    return rendered[0]


def ours(record, **more):
    """The same of the messages that a layout makes, in which tools are text."""
    return official([{"role": role, "content": text} for role, text in shown(read("messages", record, **more))])


START = [said("user", "Wie ist das Wetter?")]
CONVERSATIONS = {
    "one call": [said("assistant", "", tool_calls=[call(ort="Köln")]), said("tool", "3 °C"), said("assistant", "kalt")],
    "a text and a call": [said("assistant", "Moment.", tool_calls=[call(ort="Köln", tage=2, n=None, x=1.5)]),
                          said("tool", "{\"t\": 3.10}"), said("assistant", "kalt")],
    "several calls and responses": [
        said("assistant", "Ja.", tool_calls=[call(ort="Köln"), call("time")]), said("tool", "3"), said("tool", "12:00"),
        said("assistant", "kalt"), said("user", "und?"), said("assistant", "nichts"),
    ],
    "calls one after another": [
        said("assistant", "", tool_calls=[call(ort="Bonn")]), said("tool", "a"),
        said("assistant", "", tool_calls=[call(ort="Köln")]), said("tool", "b"), said("assistant", "c"),
    ],
    "no call": [said("assistant", "weiß nicht")],
    "ending in a call": [said("assistant", "", tool_calls=[call(ort="<b>'\"")])],
}  # fmt: skip


@pytest.mark.parametrize("system", [None, "Sei kurz.", ""])
@pytest.mark.parametrize("tools", [TOOLS, None])
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_rows_with_tools_are_written_as_the_template_writes_them(turns, tools, system):
    messages = [*([] if system is None else [said("system", system)]), *START, *turns]
    assert ours({"messages": messages, "tools": tools}) == official(messages, tools)


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_other_ways_to_write_the_same_tools(turns):
    """JSON in texts (OpenAI's arguments, ShareGPT's calls, tools of a table), and turns that are calls."""
    expected = official([*START, *turns], TOOLS)
    assert ours({"messages": [*START, *turns], "tools": json.dumps(TOOLS)}) == expected
    bare = [tool["function"] for tool in TOOLS]
    assert ours({"messages": [*START, *turns], "tools": [json.dumps(tool) for tool in bare]}) == expected
    as_text = copy.deepcopy(turns)
    for turn in as_text:
        for made in turn.get("tool_calls", []):
            made["function"]["arguments"] = json.dumps(made["function"]["arguments"])
    assert ours({"messages": [*START, *as_text], "tools": TOOLS}) == expected
    apart = [said("user", START[0]["content"])]
    words = {"user": "human", "assistant": "gpt", "tool": "observation"}
    for turn in turns:
        if turn["content"] or "tool_calls" not in turn:
            apart.append(said(turn["role"], turn["content"]))
        if "tool_calls" in turn:
            made = [one["function"] for one in turn["tool_calls"]]
            apart.append(said("function_call", json.dumps(made if len(made) > 1 else made[0])))
    conversations = [{"from": words.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in apart]
    assert ours({"conversations": conversations, "tools": json.dumps(bare)}) == expected
    assert ours({"messages": apart, "tools": TOOLS}) == expected


def test_calls_are_learned_and_responses_are_not():
    conversation = read("messages", {"messages": [*START, *CONVERSATIONS["a text and a call"]], "tools": TOOLS})
    assert [text[:7] for text in learned(conversation)] == ["Moment.", "kalt"]
    assert "<tool_call>" in learned(conversation)[0]
    assert [role for role, _ in shown(conversation)] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_the_ids_of_a_row_with_tools_are_those_of_the_template(turns):
    """The tokenizer has single tokens for `<tool_call>` and its like; the mask covers the answers and their ends."""
    tokenizer = load_processing("builtin:tiny-lm").tokenizer
    conversation = read("messages", {"messages": [*START, *turns], "tools": TOOLS})
    rendered = Renderer(tokenizer, TEMPLATE).render(conversation.messages)
    expected = official([*START, *turns], TOOLS)
    assert rendered.ids.tolist() == tokenizer(expected, add_special_tokens=False).input_ids
    answers = "".join(f"{text}<|im_end|>" for text in learned(conversation))
    assert tokenizer.decode(rendered.ids[rendered.supervised]) == answers


def test_a_call_that_is_not_learned():
    turns = copy.deepcopy(CONVERSATIONS["one call"])
    turns[0]["weight"] = 0
    assert learned(read("messages", {"messages": [*START, *turns]})) == ["kalt"]


@pytest.mark.parametrize(("system", "first"), [(None, "own"), ("", DEFAULT_SYSTEM), ("new", "new")])
def test_the_recipes_system_prompt_leaves_the_tools(system, first):
    messages = [said("system", "own"), *START, said("assistant", "a")]
    expected = official([said("system", first), *messages[1:]], TOOLS)
    assert ours({"messages": messages, "tools": TOOLS}, system=system) == expected


def test_thoughts_stand_before_the_answer():
    called = {"type": "tool_call", "value": json.dumps(call(ort="x")["function"])}
    parts = [{"type": "reasoning", "value": "hm"}, called]
    made = '<tool_call>\n{"name": "wetter", "arguments": {"ort": "x"}}\n</tool_call>'
    expected = f"<think>\nhm\n</think>\n\n{made}"
    assert shown(read("messages", {"messages": [*START, said("assistant", parts)]}))[1] == ("assistant", expected)
    beside = said("assistant", "", reasoning_content="hm", tool_calls=[call(ort="x")])
    assert shown(read("messages", {"messages": [*START, beside]}))[1] == ("assistant", expected)
    parts.insert(1, {"type": "text", "value": "so:"})
    expected = f"<think>\nhm\n</think>\n\nso:\n{made}"
    assert shown(read("messages", {"messages": [*START, said("assistant", parts)]}))[1] == ("assistant", expected)


def test_a_call_after_a_thought_after_a_text():
    parts = [
        {"type": "text", "value": "a"}, {"type": "reasoning", "value": "hm"},
        {"type": "tool_call", "value": '{"name": "f"}'},
    ]  # fmt: skip
    expected = 'a<think>\nhm\n</think>\n\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert shown(read("messages", {"messages": [*START, said("assistant", parts)]}))[1] == ("assistant", expected)


def test_a_picture_that_a_tool_returns():
    turns = [said("assistant", "", tool_calls=[call(ort="x")]), said("tool", "see <image>"), said("assistant", "a")]
    conversation = read("messages", {"messages": [*START, *turns], "images": ["map.png"]})
    assert shown(conversation)[2] == ("user", "<tool_response>\nsee ~\n</tool_response>")


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (said("function_call", "not JSON"), "tool_call"), (said("function_call", '{"arguments": {}}'), "tool_call"),
        (said("function_call", '{"name": 3}'), "tool_call"), (said("function_call", None), "part_type"),
        (said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": "x=1"}}]), "tool_call"),
        (said("assistant", "", tool_calls="f(1)"), "tool_call"),
        (said("assistant", [{"type": "tool_call", "value": "[1]"}]), "tool_call"),
        (said("assistant", [{"type": "reasoning", "value": 3}]), "part_type"),
        (said("function_call", '{"name": "f", "arguments": {}}'), None), (said("function_call", '{"name": "f"}'), None),
    ],
)  # fmt: skip
def test_calls_that_are_none(turn, expected):
    assert reason("messages", {"messages": [*START, turn]}) == expected


def test_a_call_goes_on_with_an_answer_of_the_same_weight_only():
    turns = [said("assistant", "so", weight=0), said("function_call", '{"name": "f"}')]
    assert reason("messages", {"messages": [*START, *turns]}) == "weight"
    turns[1]["weight"] = 0
    conversation = read("messages", {"messages": [*START, *turns, said("tool", "r"), said("assistant", "a")]})
    assert learned(conversation) == ["a"]
