from dft_mm.data.preparing.overlap import WORDS, Benchmarks, ngrams

LONG = "A train leaves the station at noon and travels north at sixty miles an hour; how far by three?"


def test_thirteen_words_in_a_row_are_found_whatever_their_case_and_punctuation():
    benchmarks = Benchmarks([("math:1", "Nothing like it " * 5), ("math:2", LONG)])
    assert benchmarks.find(["Once: " + LONG.upper().replace(";", " --") + " Thanks."]) == "math:2"
    assert len(benchmarks) == 2


def test_twelve_words_are_not_enough():
    words = LONG.split()
    assert Benchmarks([("q", LONG)]).find([" ".join(words[:12]) + " something else entirely that is not there"]) is None
    assert Benchmarks([("q", LONG)]).find([" ".join(words[:13])]) == "q"


def test_words_are_not_joined_across_texts():
    words = LONG.split()
    assert Benchmarks([("q", LONG)]).find([" ".join(words[:7]), " ".join(words[7:14])]) is None


def test_a_short_question_is_counted_as_one_that_cannot_be_found():
    benchmarks = Benchmarks([("q", "What is 2 + 2?"), ("r", LONG)])
    assert benchmarks.short == 1
    assert benchmarks.find(["What is 2 + 2?"]) is None


def test_the_number_of_ngrams_is_that_of_the_windows():
    assert len(list(ngrams(LONG))) == len(LONG.split()) - WORDS + 1
    assert len(set(ngrams("word " * 20))) == 1
