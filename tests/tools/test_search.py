"""Full-text search: ranking, queries of any kind, files of documents."""

import itertools
import json
import math
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nanotir.problems.generate import documents
from nanotir.tools import SearchTool
from nanotir.tools import search as module

FACTS = [
    "The population of North Ford is 123.",
    "The population of South Hill is 9.",
    "The price of raw silk is 77.",
    "Silk is soft.",
]


@pytest.fixture(scope="module")
def tool():
    with SearchTool(FACTS, top_k=2) as tool:
        yield tool


def test_the_best_passage_comes_first(tool):
    assert tool.run("population of South Hill").output.splitlines()[0] == FACTS[1]
    assert tool.run("price of raw silk").output.splitlines()[0] == FACTS[2]


def test_words_in_their_order_rank_above_the_same_words_scattered():
    scattered = "Hill Ada lives in the town of Ada Ford. Home of Ben Hill."
    in_order = "The home town of Ada Hill is Ben Ford."
    with SearchTool([scattered, in_order]) as tool:
        assert tool.run("home town of Ada Hill").output == in_order


def test_words_in_their_order_are_in_one_document():
    """The word b is worth more in the second document, if a and b are found together in neither."""
    with SearchTool(["z a", "b b"]) as tool:
        assert tool.run("a b").output == "b b"


@pytest.mark.parametrize("rare", ["a", "b"])
def test_words_in_their_order_are_found_whichever_is_rare(rare):
    """Without their order, the shorter document would be the better one."""
    others = ["a" if rare == "b" else "b", *"cdefgh"]
    with SearchTool([*others, "b a", "a b c d"]) as tool:
        assert tool.run("a b").output == "a b c d"


@pytest.mark.parametrize("query", ["d a a b", "b a a a"])
def test_words_in_their_order_may_reach_beyond_the_first_or_last_document(query):
    with SearchTool(["b a a", "a d"], top_k=2) as tool:
        assert set(tool.run(query).output.splitlines()) == {"b a a", "a d"}


@pytest.mark.parametrize("top_k", [1, 5, 300, 1000])
def test_documents_of_equal_worth_keep_their_order(top_k):
    """Also where many share the best score, and where there are fewer than top_k."""
    documents = [f"silk {i}" for i in range(200)]
    with SearchTool(documents, top_k=top_k, max_output_chars=10_000) as tool:
        assert tool.run("silk").output.splitlines() == documents[:top_k]


def test_a_word_is_found_in_a_very_long_document_among_short_ones():
    documents = [*["silk"] * 3000, "silk " + "tea " * 50_000]
    with SearchTool(documents, top_k=4000, max_output_chars=10**6) as tool:
        assert tool.run("silk").output.count("silk") == 3001


@pytest.mark.parametrize("top_k", [2, 3])
def test_top_k_is_the_number_of_passages(top_k):
    with SearchTool(FACTS, top_k=top_k) as tool:
        assert len(tool.run("population silk").output.splitlines()) == top_k


@pytest.mark.parametrize("query", ["zebra", "", "   ", "?!", "_", '""'])
def test_nothing_found_is_said_and_is_no_error(tool, query):
    result = tool.run(query)
    assert result.ok and result.output == "Nothing found."


PIECES = ['"', "'", "*", "(", ")", "NEAR(", "AND", "OR", "NOT", "text:", "^", "-", ";", "--"]
PIECES += ["silk", "population", "\x00", "\ud800", "世界", "a" * 1000, "\n"]


def test_no_query_is_an_exception(tool):
    rng = random.Random(0)
    for _ in range(500):
        query = ""
        for _ in range(rng.randrange(12)):
            query += rng.choice(PIECES) + rng.choice(("", " "))
        assert tool.run(query).ok


def test_long_passages_are_cut_in_the_middle():
    with SearchTool(["word " * 1000], max_output_chars=100) as tool:
        result = tool.run("word")
    assert result.truncated and "cut" in result.output and len(result.output) < 200


def test_documents_are_read_from_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first document\n\nsecond document\n")
    with SearchTool(path=path) as tool:
        assert tool.documents == ["first document", "second document"]
        assert tool.run("second").output == "second document"


def test_documents_are_read_from_json_lines_with_their_titles(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "Silk", "text": "It is soft."}\n{"text": "plain"}\n')
    with SearchTool(path=path) as tool:
        assert tool.documents == ["Silk. It is soft.", "plain"]
        assert tool.run("silk").output == "Silk. It is soft."


def test_without_documents_and_path_it_searches_the_generated_world():
    with SearchTool() as tool:
        assert tool.documents == documents()
        assert tool.run(documents()[0]).output == documents()[0]


def test_an_empty_list_of_documents_stays_empty():
    with SearchTool([]) as tool:
        assert tool.documents == []
        assert tool.run("population").output == "Nothing found."


def test_importing_the_tools_does_not_import_sympy():
    """The fork server without libraries imports them, and every import costs each of its forks."""
    root = Path(__file__).resolve().parents[2]
    code = "import sys, nanotir.tools\nprint('sympy' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert shown.stdout == "False\n"


def test_a_bad_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(ValueError, match="a.jsonl:2"):
        SearchTool(path=path)


@pytest.mark.parametrize("line", ['{"text": null}', '{"text": ["a"]}', '{"title": 1, "text": "a"}'])
def test_a_document_is_text(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match="a.jsonl:1: not a JSON object"):
        SearchTool(path=path)


def test_a_file_without_documents_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n \n")
    with pytest.raises(ValueError, match="no documents in '.*a.txt'"):
        SearchTool(path=path)


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match="nowhere.txt"):
        SearchTool(path="nowhere.txt")


def test_searches_from_many_threads_agree(tool):
    futures = [tool.submit("price of raw silk") for _ in range(50)]
    assert {future.result().output for future in futures} == {tool.run("price of raw silk").output}


def test_a_closed_tool_can_be_used_again():
    tool = SearchTool(FACTS)
    tool.close()
    assert tool.run("raw silk").output == FACTS[2]
    assert tool.submit("raw silk").result(timeout=10).output == FACTS[2]
    tool.close()


def test_searches_do_not_wait_for_each_other(monkeypatch):
    """Two searches are inside at the same time: each waits there for the other."""
    both = threading.Barrier(2, timeout=10)
    phrase = module.Index.phrase

    def meet(self, *arguments):
        both.wait()
        return phrase(self, *arguments)

    monkeypatch.setattr(module.Index, "phrase", meet)
    with SearchTool(FACTS) as tool:
        results = [tool.submit("raw silk") for _ in range(2)]
        assert [result.result(timeout=20).output for result in results] == [FACTS[2]] * 2


def test_slow_searches_hold_up_another_for_a_short_time_only(monkeypatch):
    end = threading.Event()
    phrase = module.Index.phrase

    def wait(self, *arguments):
        assert end.wait(20)
        return phrase(self, *arguments)

    monkeypatch.setattr(module.Index, "phrase", wait)
    with SearchTool(FACTS) as tool:
        slow = [tool.submit("raw silk") for _ in range(2)]
        assert tool.submit("soft").result(timeout=10).output == FACTS[3]
        end.set()
        assert all(result.result(timeout=10).ok for result in slow)


def test_a_search_past_its_time_says_so(monkeypatch):
    monkeypatch.setattr(module, "MAX_SECONDS", -1.0)
    with SearchTool(FACTS) as tool:
        result = tool.run("raw silk")
    assert (result.ok, result.status) == (False, "timeout")
    assert result.output.startswith("TimeoutError: no answer within")


@pytest.fixture(scope="module")
def large():
    """20,000 documents of words of which some are in nearly all documents."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(2000)]
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(2000)))
    texts = [" ".join(rng.choices(words, cum_weights=weights, k=15)) for _ in range(20_000)]
    with SearchTool(texts) as tool:
        yield tool


@pytest.mark.parametrize(
    "query",
    [
        "word0 word1 word2 word3 " * 16,
        "word0 " * 100_000,
        "a_" * 100_000,
        "_".join(f"word{i}" for i in range(1000)),
        " ".join(f"word{i}" for i in range(1000)),
    ],
)
def test_no_query_takes_long(large, query):
    seconds = []
    for _ in range(5):
        started = time.thread_time()
        large.run(query)
        seconds.append(time.thread_time() - started)
    assert min(seconds) < 0.02


def plain_bm25(texts, words):
    """Scores by the formula, for words that need no stemming."""
    split = [text.split() for text in texts]
    average = sum(map(len, split)) / len(split)
    scores = [0.0] * len(texts)
    for word in words:
        having = sum(word in text for text in split)
        rarity = max(math.log((len(split) - having + 0.5) / (having + 0.5)), 1e-6)
        for i, text in enumerate(split):
            times = text.count(word)
            damping = 1.2 * (1 - 0.75 + 0.75 * len(text) / average)
            scores[i] += rarity * times * 2.2 / (times + damping)
    return scores


def test_documents_are_ranked_by_bm25():
    rng = random.Random(1)
    texts = [" ".join(rng.choices("abcdefghijkl", k=rng.randint(3, 9))) for _ in range(60)]
    with SearchTool(texts, top_k=5) as tool:
        for words in itertools.permutations("abcdefghijkl", 2):
            if any(" ".join(words) in text for text in texts):
                continue  # the words in their order are a term of their own
            scores = plain_bm25(texts, words)
            order = sorted(range(60), key=lambda i: (-round(scores[i], 9), i))
            best = [texts[i] for i in order[:5] if scores[i]]
            assert tool.run(" ".join(words)).output.splitlines() == best


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c"])
def test_a_document_ends_at_a_newline_alone(tmp_path, separator):
    text = f"first{separator}part"
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text(f"{text}\nsecond\r\n", encoding="utf-8")
    rows = [json.dumps({"text": t}, ensure_ascii=False) for t in (text, "second")]
    lines.write_text("\n".join(rows), encoding="utf-8")
    for path in (plain, lines):
        with SearchTool(path=path) as tool:
            assert tool.documents == [text, "second"]


def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text("first", encoding="utf-8-sig")
    lines.write_text('{"text": "first"}', encoding="utf-8-sig")
    for path in (plain, lines):
        with SearchTool(path=path) as tool:
            assert tool.documents == ["first"]


def test_json_that_is_nested_too_deep_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ' + "[" * 100_000)
    with pytest.raises(ValueError, match="a.jsonl:1"):
        SearchTool(path=path)


def test_documents_may_hold_halves_of_characters():
    with SearchTool(["a \ud800 b", "c"]) as tool:
        assert tool.run("b").output == "a \ud800 b"
