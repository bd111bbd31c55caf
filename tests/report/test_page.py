import base64
import hashlib
import html.parser
import itertools
import json
import re
from dataclasses import replace

import pytest

from dft_mm.errors import InputError
from dft_mm.report.about import about_run
from dft_mm.report.page import write_report
from dft_mm.report.read import read_run

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


@pytest.fixture(scope="module")
def whole(arms, compare, prepare, tmp_path_factory):
    """The page of everything, and its text."""
    folder = tmp_path_factory.mktemp("page")
    for run in arms[1:]:
        prepare(run)
    comparison = compare(folder / "comparison", arms[2] / "eval/digits", arms[1] / "eval/digits")
    write_report([*arms, comparison], folder / "report.html")
    text = (folder / "report.html").read_text(encoding="utf-8")
    return _Page(text), text


def section(text, name):
    (found,) = re.findall(rf'<section id="{name}".*?</section>', text, flags=re.DOTALL)
    return found


def test_the_page_needs_nothing_from_elsewhere(whole):
    page, text = whole
    assert not re.findall(r"https?://|//[a-z]+\.", text)
    assert not {"iframe", "object", "embed"} & set(page.tags)
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"@import|url\((?!#)", text)
    assert page.unbalanced == []
    assert page.open == []


def test_only_the_page_s_own_script_may_run_and_nothing_may_be_asked_for(whole):
    _, text = whole
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.replace("&#39;", "'").split("; "))
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["connect-src"], rules["img-src"]) == ("'none'", "'none'", "data:")


def test_runs_share_their_plots_and_show_where_they_began(whole):
    _, text = whole
    curves = section(text, "training")
    assert re.findall(r"<h3>(.*?)</h3>", curves) == [
        "Cross-entropy", "Held-out cross-entropy", "Objective", "Mean probability of the right token", "Learning rate",
        "Gradient norm", "Throughput", "Memory",
    ]  # fmt: skip
    first = curves[: curves.index("</figure>")]
    assert all(f'data-run="{place}"' in first for place in range(3))
    probabilities = section(text, "probabilities")
    assert probabilities.count("<figure") == 5  # before and after: the warm-up, and the arms together; three heat maps
    assert "before: warmup" in probabilities


def test_ids_do_not_collide(whole):
    # Matplotlib names groups alike in every figure; what is referred to (clips, markers) has to differ.
    page, text = whole
    svgs = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    referred = [set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) for svg in svgs]
    assert all(referred)
    assert len(set.union(*referred)) == sum(map(len, referred))
    own = [value for tag, name, value in page.attributes if name == "id" and tag not in ("g", "path", "clipPath")]
    assert len(own) == len(set(own))


def test_headings_are_in_order_and_everything_has_a_name(whole):
    page, text = whole
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    landmarks = ("header", "nav", "main", "footer")
    assert tuple(tag for tag in page.tags if tag in landmarks) == landmarks
    assert len(re.findall(r'<svg role="img" aria-label="[^"]{20,}"', text)) == page.tags.count("svg")
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', text)) == page.tags.count("img") > 0
    fields = page.tags.count("select") + page.tags.count("input")
    assert len(re.findall(r"<label>[^<]+\s*<(?:select|input)", text)) == fields == 3


def test_scores_are_there_with_intervals(whole):
    _, text = whole
    assert "<strong>77.5</strong> <small>67.5 to 87.5</small>" in text
    assert "<strong>80.0</strong>" in text


def test_a_missing_score_is_a_blank_with_a_footnote(write, arms, make_results, tmp_path):
    _, text = write([arms[1] / "eval/digits", make_results(tmp_path / "other", 20, benchmark="pairs")])
    assert "<td><sup>1</sup></td>" in text
    assert "<sup>1</sup> not measured" in text
    assert "<strong>0.0</strong>" not in text


def test_the_verdict_stands_first_and_its_figures_below(whole):
    _, text = whole
    overview, comparison = section(text, "overview"), section(text, "comparison")
    assert "dft is better than sft on writers; no difference is shown on pairs." in overview
    assert "dft-mm compare" not in overview
    assert '</td><td class="whole">+10.0 to +30.0</td><td>0.001</td><td>0.002</td>' in comparison
    assert "no difference is shown; one of this size would need about 300 questions" in comparison
    assert comparison.count("<svg") == 1


def test_without_a_comparison_the_page_says_how_to_make_one(write, arms):
    _, text = write([run / "eval/digits" for run in arms])
    assert "dft-mm compare --results" in section(text, "overview")
    assert re.search(r'<section id="comparison"[^>]* hidden>', text)


def test_settings_that_differ_are_told(write, make_run):
    _, text = write([make_run("sft", steps=0), make_run("dft", "dft", steps=0)])
    rows = re.findall(r'<tr><th scope="row"><code>(.*?)</code>', section(text, "overview"))
    assert rows == ["loss.name"]


def test_data_shows_what_was_refused_and_why_once_for_all_runs(whole):
    _, text = whole
    data = section(text, "data")
    assert data.count("<h3>") == 1
    assert "Data of sft, dft" in data
    assert "990 rows to learn from, 7 held out" in data
    assert "image_missing 2" in data
    assert "train.jsonl:2" in data
    assert "&lt;img&gt; no such file" in data


def test_hostile_text_stays_text(write, make_run, make_results, questions):
    evil = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\u2028\ud800"
    run = make_run("evil", model=evil, steps=0, state="failed", reason=evil)
    rows = [json.loads(line) | {"problem": evil} for line in questions.read_text().splitlines()]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_results(run / "eval" / "digits", 20, text=evil + "{}")
    page, text = write([run], title=evil, intro=[evil])
    assert page.tags.count("script") == 1 + text.count('<script type="application/json">')
    assert not [each for each in page.attributes if each[1].startswith("on")]
    assert sum("<script>alert(1)</script>" in text for text in page.text) >= 5
    assert page.unbalanced == []


@pytest.mark.parametrize(
    ("train", "last", "done"),
    [
        ({"epochs": 1, "max_steps": 1000}, {"step": 50, "epoch": 1.0}, 1),
        ({"epochs": 3, "max_steps": 10}, {"step": 10, "epoch": 0.1}, 1),
        ({"epochs": 2, "max_steps": None}, {"step": 50, "epoch": 0.5}, 0.25),
        ({"epochs": 2, "max_steps": None}, {}, None),
    ],
)
def test_a_run_is_done_at_the_first_of_its_bounds(make_run, train, last, done):
    run = read_run(make_run("a", steps=0))
    recipe = run.recipe | {"train": run.recipe["train"] | train}
    assert about_run(replace(run, recipe=recipe, metrics=[last] if last else []))["done"] == done


def test_an_answer_has_the_same_id_wherever_it_stands(write, make_results, tmp_path):
    def ids(text):
        found = re.findall(
            r'<h3>(pairs|writers), (q\d+)</h3>|<details id="(answer-.*?)"><summary>.*?</span> (\w+):', text
        )
        where, ids = None, {}
        for benchmark, question, answer, model in found:
            if benchmark:
                where = benchmark, question
            else:
                ids[*where, model] = answer
        return ids

    other = make_results(tmp_path / "other", 20, benchmark="pairs")
    mine = make_results(tmp_path / "mine", 20)
    before = ids(write([mine])[1])
    after = ids(write([other, mine])[1])
    assert len(before) == 40
    assert len(set(after.values())) == 80
    assert before.items() <= after.items()


def test_a_run_that_failed_says_why_before_all_else(write, make_run):
    _, text = write([make_run("a", steps=0, state="failed", reason="step 7: the loss is not finite")])
    overview = section(text, "overview")
    assert overview.index("a has failed: step 7: the loss is not finite") < overview.index("<table")


def test_a_run_without_any_step_is_shown_without_plots(write, make_run):
    run = make_run("a", steps=0, state="running")
    for name in ("STATUS.json", "environment.json", "metrics.jsonl"):
        (run / name).unlink()
    page, text = write([run])
    assert "svg" not in page.tags
    assert "no status yet" in section(text, "overview")


def test_two_runs_of_one_name_are_both_drawn(write, make_run, tmp_path):
    make_run("a", steps=0).rename(tmp_path / "elsewhere")
    _, text = write([tmp_path / "elsewhere", make_run("a", steps=0)])
    buttons = re.findall(r'<button type="button" id.*?</span>(.*?)</span></button>', text)
    assert buttons == [str(tmp_path / "elsewhere"), str(tmp_path / "runs" / "a")]


def test_a_long_run_makes_a_small_page(write, make_run):
    _, text = write([make_run("a", steps=4_000)])
    assert len(text) < 700_000
    assert "400 points are drawn" in text


def test_neither_run_nor_results(write, tmp_path):
    with pytest.raises(InputError, match="neither a run folder"):
        write([tmp_path])
