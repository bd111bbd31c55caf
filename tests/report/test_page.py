import html.parser
import json
import re

import pytest

from dft_mm.errors import InputError
from dft_mm.report.page import write_report
from dft_mm.report.plots import running_mean

_VOID = {"meta", "br", "img", "link", "input", "hr"}


class _Page(html.parser.HTMLParser):
    """What a browser would make of the page: tags, attributes, text; unbalanced tags are noted."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open, self.unbalanced = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attributes]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attributes]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def write(tmp_path):
    def write(paths, **more):
        out = tmp_path / "report.html"
        write_report(paths, out, **more)
        return _Page(out.read_text(encoding="utf-8")), out.read_text(encoding="utf-8")

    return write


@pytest.fixture
def arms(make_run, make_results):
    warmup = make_run("warmup")
    sft = make_run("sft", model="runs/warmup/export", file="mixed.jsonl")
    dft = make_run("dft", "dft", model="runs/warmup/export", file="mixed.jsonl")
    for folder, right in ((warmup, 31), (sft, 24), (dft, 32)):
        make_results(folder / "eval" / "digits", right)
    return [warmup, sft, dft]


def test_the_page_needs_nothing_from_elsewhere(write, arms):
    page, text = write(arms)
    assert not re.findall(r"https?://|//[a-z]+\.", text)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.unbalanced == []
    assert page.open == []


def test_arms_share_their_plots_and_show_where_they_began(write, arms):
    page, text = write(arms)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    assert "warmup (loss sft)" in headings
    assert "sft (loss sft) and dft (loss dft)" in headings
    # ce, held-out ce, p_mean, gradient norm and the histogram, of two groups
    assert page.tags.count("figure") == 10
    assert "before (warmup)" in text


def test_ids_of_plots_do_not_collide(write, arms):
    # Matplotlib names groups alike in every figure; what is referred to (clips, markers) has to differ.
    _, text = write(arms)
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    referred = [set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) for svg in svgs]
    assert all(referred)
    assert len(set.union(*referred)) == sum(map(len, referred))


def test_scores_are_there_with_intervals(write, arms):
    _, text = write(arms)
    assert "<strong>77.5</strong> <small>67.5 to 87.5</small>" in text
    assert "<strong>80.0</strong>" in text


def test_a_missing_score_is_a_blank_with_a_footnote(write, arms, make_results):
    make_results(arms[2] / "eval" / "other", 20, benchmark="pairs")
    _, text = write(arms)
    assert "<td><sup>1</sup></td>" in text
    assert "<sup>1</sup> not measured" in text
    assert "<strong>0.0</strong>" not in text


def test_samples_show_picture_gold_and_every_answer(write, arms):
    page, text = write(arms)
    assert sum(tag == "img" for tag in page.tags) == 8
    assert "Questions 1, 6, 11, … of 40" in text
    assert text.count("&#10003;") == 7 + 5 + 7  # of 0, 5, 10, … 35 those below 31, 24 and 32
    assert text.count("&#10007;") == 1 + 3 + 1


def test_hostile_text_stays_text(write, make_run, make_results, questions):
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = make_run("evil", model=evil, state="failed", reason=evil)
    make_results(run / "eval" / "digits", 20, text=evil + "{}")
    rows = [json.loads(line) | {"problem": evil} for line in questions.read_text().splitlines()]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, _ = write([run], title=evil, intro=[evil], findings=[evil])
    assert "script" not in page.tags
    assert not [each for each in page.attributes if each[1].startswith("on")]
    assert sum("<script>alert(1)</script>" in text for text in page.text) >= 5
    assert page.unbalanced == []


def test_questions_that_are_gone_leave_the_scores(write, arms, questions):
    questions.unlink()
    page, text = write(arms)
    assert "img" not in page.tags
    assert "<strong>77.5</strong>" in text


def test_a_run_that_failed_says_why(write, make_run):
    _, text = write([make_run("a", state="failed", reason="step 7: the loss is not finite")])
    assert "failed: step 7: the loss is not finite" in text


def test_a_run_without_any_step_is_shown_without_plots(write, make_run):
    run = make_run("a", steps=0, state="running")
    page, _ = write([run])
    assert "svg" not in page.tags


def test_neither_run_nor_results(write, tmp_path):
    with pytest.raises(InputError, match="neither a run folder"):
        write([tmp_path])


def test_running_mean_uses_what_was_before():
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]
