import json

import pytest
import yaml
from prepared import good, rows

from dft_mm.config import load_recipe
from dft_mm.errors import InputError
from dft_mm.study.inspect import print_json, print_rows, write_html


@pytest.fixture
def recipe(tmp_path):
    more = [good(7, ["0.png", "2.png"]) | {"id": "two"}, good(8) | {"problem": "Is <b>this</b> & that?"}, "broken\n"]
    source = rows(tmp_path, *more, count=4)
    values = {
        "name": "look", "output": str(tmp_path / "run"), "model": {"path": "builtin:tiny-vl"},
        "data": {"train": [source | {"loss": "sft"}], "bad_rows": 0.5, "max_length": 512, "heldout_fraction": 0.2},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_recipe(path)


def test_json_has_all_rows_in_file_order_and_what_is_learned(recipe, capsys):
    print_json(recipe, None)
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in shown] == [0, 1, 2, 3, 4, 5]
    assert {"train", "heldout"} == {row["split"] for row in shown}
    assert {row["loss"] for row in shown} == {"sft"}
    assert [len(row["images"]) for row in shown] == [1, 0, 1, 0, 2, 0]
    assert all(len(row["ids"]) == len(row["supervised"]) for row in shown)


def test_one_row_is_shown_by_its_id(recipe, capsys):
    print_json(recipe, None, "two")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["row"] == 4
    print_rows(recipe, None, "two")
    text = capsys.readouterr().out
    assert "What is 7?" in text
    assert "What is 1?" not in text
    with pytest.raises(InputError, match="no prepared row has this id; the first are a:0, a:1, a:2"):
        print_rows(recipe, None, "nothing")


def test_the_page_stands_alone_and_shows_pictures_counts_and_refusals(recipe, tmp_path):
    out = tmp_path / "rows.html"
    write_html(recipe, out, None)
    page = out.read_text()
    assert page.count('src="data:image/jpeg;base64,') == 4
    assert "http" not in page
    assert "Is &lt;b&gt;this&lt;/b&gt; &amp; that?" in page
    assert "7 rows: 6 used, 1 refused\n(broken_json 1)" in page
    assert "broken_json" in page.split("Refused rows")[1]
    assert page.count('<span class="learned">') == 6 + 1  # and the legend


def test_the_page_shows_one_row_or_the_first_few(recipe, tmp_path):
    out = tmp_path / "rows.html"
    write_html(recipe, out, 2)
    assert out.read_text().count("<article>") == 2
    write_html(recipe, out, None, "two")
    assert out.read_text().count("<article>") == 1
    assert "<h3>two</h3>" in out.read_text()
