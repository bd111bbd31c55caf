"""Grading of mathematics, against hand-made verdicts and the labels of real outputs."""

import time

import pytest

from dft_mm.evaluate.grade_math import Grader, grade
from dft_mm.evaluate.mathematics.text import extract
from dft_mm.evaluate.mathematics.worker import MathWorker

EQUAL = [
    (r"\frac{3}{4}", "0.75"),
    (r"\frac43", r"\dfrac{4}{3}"),
    (r"90^\circ", "90 degrees"),
    (r"\$32,\!348", "32348"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{(C)}", "(C) 12"),
    (r"864 \mbox{ inches}^2", "864"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix} -\frac{1}{3} \\ \frac23 \end{bmatrix}"),
    (r"(0,9) \cup (9,36)", r"(0, 9)\cup(9, 36)"),
    ("1,-2", r"x=1 \text{ or } x=-2"),
    (r"3 \pm 2 \sqrt{2}", r"3+2\sqrt2, 3-2\sqrt2"),
    (r"10\%", "0.1"),
    ("4210_{5}", "4210"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    ("17", "17 apples"),
    ("18", r"\$18.00"),
    ("4500000", "4{,}500{,}000"),
    ("8.7e8", "870{,}000{,}000"),
    ("240πcm^{2}", r"240\pi"),
    ("2√{3}", "2sqrt(3)"),
    (r"11:15 \text{ a.m.}", "11:15 a.m."),
    (r"\frac{1}{3}", "0.333333333"),
    ("x^2-1", "(x-1)(x+1)"),
    ("np.arcsin(10/13)", r"\arcsin\frac{10}{13}"),
    ("-3./2", "-1.5"),
    ("4.5e33", r"4.5 \times 10^{33}"),
    ("4.5e33", r"45\cdot 10^{32}"),
    ("7.25e-8", r"$7.25 \times 10^{-8}$ m"),
    (r"10^{5}", "100000"),
    (r"\frac{v_{i}}{L C}", r"\frac{v_i}{LC}"),
    (r"$m_{\max }=n^{2}-n-1$", "n^2-n-1"),
]
DIFFERENT = [
    (r"\frac{3}{4}", "0.7"),
    ("(1,2)", "(2,1)"),
    ("(3,4]", "(3,4)"),
    ("1,-2", "1"),
    ("1", "1,-2"),
    (r"\text{east}", "west"),
    (r"\text{(C)}", "D"),
    ("C", "(D) C is wrong"),
    (r"\pi", "3.14"),
    ("1/3", "0.33"),
    ("4210_{5}", "4210_6"),
    (r"10\%", "0.01"),
    ("6-5i", "6+5i"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("1234567.8", "1234567.9"),
    ("x>2", r"x\ge 2"),
    ("8:00", "9:00"),
    (r"11:15 \text{ a.m.}", r"11:15 \text{ p.m.}"),
    ("5", "x=6"),
    ("-3./2", "1.5"),
    ("4.5e33", r"4.5 \times 10^{32}"),
    ("np.arcsin(10/13)", "0.49"),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers_are_correct(gold, answer):
    assert grade(rf"So it is \boxed{{{answer}}}.", gold).status == "correct"


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_answers_are_wrong(gold, answer):
    assert grade(rf"So it is \boxed{{{answer}}}.", gold).status == "wrong"


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\text{a } \{1, 2\}}", r"\text{a } \{1, 2\}"),
        (r"\boxed{1} and $\boxed{2}$", "1, 2"),
        (r"\boxed{} then nothing", None),
        (r"\boxed{12 was cut off", None),
        ("<think>\\boxed{5}</think>\n<answer>6</answer>", "6"),
        (r"<answer>\boxed{7}</answer>", "7"),
        ("The answer is 3. The answer is $4$, as said.", "4"),
        ("**Answer:** 12", "12"),
        ("The answers are $69$, $84$ and $2$, as $3$ shows.", "69, 84, 2"),
        (r"The final answer is $\$32,348$.", r"\$32,348"),
        ("2 + 3 = <<2+3=5>>5 apples\n#### 5", "5"),
        ("The final answer should be (D).", "(D)"),
        ("42", "42"),
        ("I cannot see 2 pictures.", None),
        ("", None),
    ],
)
def test_the_last_stated_answer_is_extracted(response, answer):
    assert extract(response) == answer


def test_no_answer_and_a_cut_one_are_told_apart():
    assert grade("Let me think", "5").status == "no_answer"
    assert grade("Let me think", "5", finish_reason="length").status == "truncated"
    assert grade(r"\boxed{5} and so", "5", finish_reason="length").status == "correct"


@pytest.mark.parametrize("gold", ["", "$", r"\boxed{}", r"\frac{", "((", r"\frac{0}{0}"])
def test_a_gold_answer_that_is_none_is_ungradable(gold):
    assert grade(r"\boxed{5}", gold).status == "ungradable"


@pytest.mark.parametrize(
    "answer",
    [
        "9^9^9^9^9",
        r"9^{9^{9^{9^{9}}}}",
        "(" * 150,
        "1+" * 50_000 + "1",
        r"\boxed{" * 20_000 + "1" + "}" * 20_000,
        "9" * 100_000,
        "\ud800",
        "\0",
    ],
)
def test_hostile_answers_end_in_time_without_an_error(answer):
    start = time.monotonic()
    assert grade(rf"\boxed{{{answer}}}", "42").status in ("wrong", "timeout")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("piece", [r"\boxed{", r"\(", "<answer>", "the answer is ", "$", " ", "\\", r"\boxed{1}, "])
def test_hostile_responses_end_in_time_without_an_error(piece):
    start = time.monotonic()
    assert grade(piece * (100_000 // len(piece)), "42").status in ("wrong", "no_answer", "timeout")
    assert time.monotonic() - start < 10


def test_answers_are_never_run_as_programs(tmp_path):
    mark = tmp_path / "ran"
    code = f"__import__('pathlib').Path('{mark}').touch()"
    for response in (rf"\boxed{{{code}}}", f"the answer is ${code}$", f"<answer>{code}</answer>"):
        assert grade(response, "42").status == "wrong"
    assert not mark.exists()


def test_a_worker_that_hangs_is_replaced():
    worker = MathWorker(limit_s=1.0)
    try:
        assert worker.compare("42", "9^{9^{9^{9^{9}}}}") == "timeout"
        assert worker.compare("x+1", "1+x") == "equal"
        worker.process.kill()  # as the system does when memory is short
        worker.process.wait()
        assert worker.compare("x+1", "1+x") == "timeout"
        assert worker.compare("x+1", "1+x") == "equal"
    finally:
        worker.close()


def test_a_batch_is_graded_in_order():
    items = [(rf"\boxed{{x+{n}}}", f"{n if n % 3 else 1}+x", "stop") for n in range(2, 40)]
    with Grader(processes=2) as grader:
        statuses = [verdict.status for verdict in grader.grade_all(items)]
    assert statuses == ["correct" if n % 3 else "wrong" for n in range(2, 40)]
