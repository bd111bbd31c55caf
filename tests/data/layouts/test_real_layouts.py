"""Real files, as their authors published them, read by `format: auto`; and rows of them, worked out by hand."""

import json
from collections import Counter
from pathlib import Path

import pytest
from reading import learned, shown, sources

from dft_mm.config import SourceConfig
from dft_mm.data.layouts.choose import choose_layout
from dft_mm.data.layouts.formats import NotChosen
from dft_mm.data.layouts.rows import parse
from dft_mm.data.reading import files
from dft_mm.data.records import BadRow

# file: layout, rows, and of these those that are read, not chosen, or refused (by reason); pictures that are not there
FILES = {
    "train_llamafactory_demo/alpaca_en_demo.json": ("alpaca", 200, {"read": 200}, 0),
    "train_llamafactory_demo/dpo_en_demo.json": ("preference", 60, {"read": 60}, 0),
    "train_llamafactory_demo/glaive_toolcall_en_demo.json": ("sharegpt", 40, {"read": 40}, 0),
    "train_llamafactory_demo/identity.json": ("alpaca", 91, {"read": 91}, 0),
    "train_llamafactory_demo/kto_en_demo.json": ("preference", 60, {"read": 38, "not chosen": 22}, 0),
    "train_llamafactory_demo/mllm_demo.json": ("messages", 6, {"read": 6}, 0),
    "train_llamafactory_demo/reason_tool_use_demo.jsonl": ("messages", 25, {"read": 25}, 0),
    "train_llamafactory_demo/v1_dpo_demo.jsonl": ("preference", 10, {"read": 10}, 0),
    "train_llamafactory_demo/v1_multimodal_demo.jsonl": ("messages", 24, {"read": 24}, 0),
    "train_llamafactory_demo/v1_sft_demo.jsonl": ("messages", 150, {"read": 150}, 0),
    "train_qwenvl_demo/single_images.json": ("qwenvl", 3, {"read": 3}, 0),
    "train_scienceqa/problems.json": ("question_answer", 110, {"read": 110}, 0),
    "train_tabmwp/problems.json": ("question_answer", 350, {"read": 350}, 0),
    "train_text/aime_1983_2023.json": ("problem_solution", 300, {"read": 300}, 0),
    "train_text/gsm8k_train.jsonl": ("problem_solution", 1500, {"read": 1500}, 0),
    "train_text/math_solutions.jsonl": ("problem_solution", 700, {"read": 700}, 0),
    "train_text/numinamath_cot_samples.jsonl": ("problem_solution", 3, {"read": 3}, 0),
    "train_text/numinamath_layout.jsonl": ("problem_solution", 700, {"read": 700}, 0),
    "train_text/ultrafeedback_pairs.jsonl": ("preference", 400, {"read": 400}, 0),
    "train_vlaa_thinking/examples.jsonl": ("question_answer", 5, {"read": 5}, 0),
    "wethink_layout/wethink_layout.jsonl": ("wethink", 465, {"read": 453, "no_answer": 12}, 0),
    "mathvision/testmini.jsonl": ("question_answer", 60, {"read": 60}, 0),
    "mathvision/test_special.jsonl": ("question_answer", 21, {"read": 21}, 0),
    "mathverse/testmini.json": ("question_answer", 130, {"read": 130}, 0),
    "mathverse/testmini_text_only.json": ("question_answer", 300, {"read": 300}, 0),
    # The page's names of pictures; they are stored under the official ones.
    "mathverse/visualizer_items.json": ("question_answer", 156, {"read": 156}, 130),
    "wemath/data/testmini.json": ("question_answer", 108, {"read": 108}, 0),
    "vlmevalkit_tsv/MathVerse_SAMPLE.tsv": ("question_answer", 25, {"read": 25}, 0),
    "vlmevalkit_tsv/MathVision_SAMPLE.tsv": ("question_answer", 20, {"read": 20}, 0),
    "vlmevalkit_tsv/WeMath_SAMPLE.tsv": ("question_answer", 24, {"read": 24}, 0),
    "text_math/aime24/test.jsonl": ("problem_solution", 30, {"read": 30}, 0),
    "text_math/amc23/test.jsonl": ("problem_solution", 40, {"read": 40}, 0),
    "text_math/gsm8k/test.jsonl": ("problem_solution", 700, {"read": 700}, 0),
    "text_math/math_oai/test.jsonl": ("problem_solution", 400, {"read": 400}, 0),
    "text_math/minerva_math/test.jsonl": ("problem_solution", 222, {"read": 222}, 0),
    "text_math/olympiadbench/test.jsonl": ("problem_solution", 575, {"read": 575}, 0),
}


def read(path, work, **more):
    """(layout, what became of each row, pictures that are not there)"""
    records = [record for part in files.split(path, 1000, work) for record in files.read(part)]
    good = [record.value for record in records[:20] if not isinstance(record.value, BadRow)]
    layout = choose_layout(SourceConfig(path=str(path), **more), path, good)
    made = []
    for record in records:
        try:
            made.append(parse(record.value, layout))
        except NotChosen:
            made.append("not chosen")
        except BadRow as bad:
            made.append(bad.reason)
    named = {source for row in made if not isinstance(row, str) for source in sources(row) if isinstance(source, str)}
    return layout, made, sum(not (Path(layout.images) / source).is_file() for source in named)


def fates(made):
    return dict(Counter(row if isinstance(row, str) else "read" for row in made))


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_read_as_it_is(shared, tmp_path, name):
    layout, made, missing = read(shared / "data" / name, tmp_path)
    assert (layout.format, len(made), fates(made), missing) == FILES[name], layout.why


@pytest.mark.parametrize(
    ("pattern", "count", "pictures"),
    [
        ("train_iconqa/choose_img/*/data.json", 30, None), ("train_iconqa/choose_txt/*/data.json", 30, 30),
        ("train_iconqa/fill_in_blank/*/data.json", 30, 30), ("train_geometry3k/*/data.json", 10, 10),
    ],
)  # fmt: skip
def test_a_row_in_a_folder_of_its_own_finds_its_pictures(shared, tmp_path, pattern, count, pictures):
    paths = sorted((shared / "data").glob(pattern))
    seen = 0
    for path in paths:
        layout, (row,), missing = read(path, tmp_path)
        assert (layout.format, missing) == ("question_answer", 0), path
        beside = {file.name for file in path.parent.glob("*.png")} - {"img_problem.png"}
        assert set(sources(row)) == beside
        seen += len(sources(row))
    assert len(paths) == count
    assert seen == pictures or (pictures is None and seen >= 3 * count)


def test_every_picture_of_a_table_is_a_picture_file(shared, tmp_path):
    originals = {path.read_bytes() for path in (shared / "data/mathvision/images").iterdir()}
    _, made, _ = read(shared / "data/vlmevalkit_tsv/MathVision_SAMPLE.tsv", tmp_path)
    assert all(set(sources(row)) <= originals and len(row.images) == 1 for row in made)


def test_answers_are_those_that_the_data_sets_give(shared, tmp_path):
    """The last words learned against the gold answer, whatever form it has."""
    rows = json.loads((shared / "data/train_scienceqa/problems.json").read_text())
    _, made, _ = read(shared / "data/train_scienceqa/problems.json", tmp_path)
    for row, conversation in zip(rows.values(), made, strict=True):
        assert learned(conversation)[0].endswith(row["choices"][row["answer"]])
    rows = json.loads((shared / "data/train_tabmwp/problems.json").read_text())
    _, made, _ = read(shared / "data/train_tabmwp/problems.json", tmp_path)
    for (name, row), conversation in zip(rows.items(), made, strict=True):
        assert learned(conversation)[0].startswith(f"{row['solution']}\n\nAnswer: ")
        assert learned(conversation)[0].endswith(row["answer"])
        assert sources(conversation) == [f"tables/{name}.png"]


DEMO = "data/train_llamafactory_demo"
KANE, THOMAS = "mllm_demo_data/1.jpg", "mllm_demo_data/2.jpg"
FOOTBALL = [
    ("user", "~Who are they?"), ("assistant", "They're Kane and Gretzka from Bayern Munich."),
    ("user", "What are they doing?~"), ("assistant", "They are celebrating on the soccer field."),
]  # fmt: skip
TIP = (
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.\n\n# Tools\n\nYou may call one or more "
    "functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML "
    'tags:\n<tools>\n{"type": "function", "function": {"name": "calculate_tip", "description": "Calculate the tip '
    'amount for a bill", "parameters": {"type": "object", "properties": {"bill_amount": {"type": "number", '
    '"description": "The total bill amount"}, "tip_percentage": {"type": "number", "description": "The percentage of '
    'tip to be given"}}, "required": ["bill_amount", "tip_percentage"]}}}\n</tools>\n\nFor each function call, return '
    "a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
BY_HAND = [  # file, row, messages, pictures, number of answers learned
    ("mllm_demo.json", 0, FOOTBALL, [KANE, KANE], 2),
    ("mllm_demo.json", 4,
     [("user", "~他是谁？"), ("assistant", "他是来自拜仁慕尼黑的托马斯·穆勒。"), ("user", "他为什么在地上？"),
      ("assistant", "因为他正在双膝跪地滑行庆祝。")], [THOMAS], 2),
    ("v1_multimodal_demo.jsonl", 0, FOOTBALL, [KANE, KANE], 2),
    ("v1_sft_demo.jsonl", 0,
     [("user", "hi"),
      ("assistant", "Hello! I am {{name}}, an AI assistant developed by {{author}}. How can I assist you today?")],
     [], 1),
    ("alpaca_en_demo.json", 1,
     [("user", "Transform the following sentence using a synonym: The car sped quickly."),
      ("assistant", "The car accelerated rapidly.")], [], 1),
    ("dpo_en_demo.json", 32,
     [("user", "Please give me the computation for 7818x86175. Only mathematical symbols, no verbal descriptions."),
      ("assistant", "7818 x 86175 = 674667340")], [], 1),
    ("v1_dpo_demo.jsonl", 0,
     [("system", "You are an AI assistant. You will be given a task. You must generate a detailed and long answer."),
      ("user", "Abdulah Hasanagic este mândrul proprietar al AS Company din Gorazde, un orăşel situat pe malul râului "
       "Drina, lângă frontiera cu Serbia, în estul Bosniei.\n\nTranslate to English\n\nEnglish:"),
      ("assistant", "Abdulah Hasanagic is the proud owner of AS Company in Gorazde, a small town located on the banks "
       "of the Drina River, near the border with Serbia, in Eastern Bosnia.")], [], 1),
    ("glaive_toolcall_en_demo.json", 11,
     [("system", TIP),
      ("user", "Hi, I need help with calculating the tip for my bill. The total bill amount is $100 and I want to give "
       "a 15% tip."),
      ("assistant", '<tool_call>\n{"name": "calculate_tip", "arguments": {"bill_amount": 100, "tip_percentage": 15}}\n'
       "</tool_call>"),
      ("user", '<tool_response>\n{"tip_amount": 15}\n</tool_response>'),
      ("assistant", "The tip amount for your bill is $15.")], [], 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "messages", "pictures", "answers"), BY_HAND)
def test_rows_of_llamafactorys_demo_worked_out_by_hand(shared, tmp_path, name, row, messages, pictures, answers):
    _, made, _ = read(shared / DEMO / name, tmp_path)
    assert (shown(made[row]), sources(made[row])) == (messages, pictures)
    assert len(learned(made[row])) == answers


def test_alpacas_input_follows_its_instruction(shared, tmp_path):
    _, made, _ = read(shared / DEMO / "alpaca_en_demo.json", tmp_path)
    asked = "Given the parameters of a triangle, find out its perimeter.\nSide 1 = 4\nSide 2 = 6\nSide 3 = 8"
    assert ("user", asked) in [shown(row)[0] for row in made]


def test_only_the_labelled_answer_of_a_kto_row_is_learned(shared, tmp_path):
    rows = json.loads((shared / DEMO / "kto_en_demo.json").read_text())
    _, made, _ = read(shared / DEMO / "kto_en_demo.json", tmp_path)
    for row, conversation in zip(rows, made, strict=True):
        if not row["label"]:
            assert conversation == "not chosen"
            continue
        assert shown(conversation) == [(turn["role"], turn["content"]) for turn in row["messages"]]
        assert learned(conversation) == [row["messages"][-1]["content"]]


def test_thoughts_and_calls_of_a_demo_row_worked_out_by_hand(shared, tmp_path):
    _, made, _ = read(shared / DEMO / "reason_tool_use_demo.jsonl", tmp_path)
    (system, prompt), user, (role, answer) = shown(made[22])
    assert (system, role) == ("system", "assistant")
    assert prompt.startswith("You are a methodical and expert assistant. Your primary goal is to solve user requests ")
    assert "structured manner before responding.\n\n# Tools\n\nYou may" in prompt
    assert prompt.count('\n{"type": "function", "function": {"name": "') == 2
    asked = "I need details on the'minecraft:redstone_lamp' block and also 2 Bingo cards for the US game."
    assert user == ("user", asked)
    assert answer.startswith("<think>\nOkay, the user wants information about the'minecraft:redstone_lamp' block")
    assert answer.endswith(
        "Let me structure the calls correctly.\n</think>\n\n"
        '<tool_call>\n{"name": "blocks", "arguments": {"block_id": "minecraft:redstone_lamp"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "us", "arguments": {"cards": "2"}}\n</tool_call>'
    )


ENTRIES = {  # what LLaMA-Factory's own dataset_info.json says of these files
    "identity": {"file_name": "identity.json"},
    "alpaca_en_demo": {"file_name": "alpaca_en_demo.json"},
    "glaive_toolcall_en_demo": {
        "file_name": "glaive_toolcall_en_demo.json", "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    },
    "mllm_demo": {
        "file_name": "mllm_demo.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "dpo_en_demo": {
        "file_name": "dpo_en_demo.json", "ranking": True, "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "kto_en_demo": {
        "file_name": "kto_en_demo.json", "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_llamafactorys_entry_and_the_columns_say_the_same(shared, tmp_path, name):
    source = shared / DEMO / ENTRIES[name]["file_name"]
    _, expected, _ = read(source, tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps(ENTRIES))
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    layout, made, _ = read(copy, tmp_path, images=str(source.parent))
    assert layout.entry.name == name
    assert made == expected


def test_ambiguous_columns_say_what_else_would_fit(shared, tmp_path):
    layout, made, _ = read(shared / "data/train_text/numinamath_cot_samples.jsonl", tmp_path)
    assert "messages would fit, too" in layout.why
    _, again, _ = read(shared / "data/train_text/numinamath_cot_samples.jsonl", tmp_path, format="messages")
    assert [shown(row) for row in made] == [shown(row) for row in again]
