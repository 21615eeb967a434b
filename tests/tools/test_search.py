"""Full-text search: ranking, queries of any kind, files of documents."""

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from nanotir.problems.generate import documents
from nanotir.tools import SearchTool

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


def test_a_missing_file_is_named():
    with pytest.raises(ValueError, match="nowhere.txt"):
        SearchTool(path="nowhere.txt")


def test_searches_from_many_threads_agree(tool):
    futures = [tool.submit("price of raw silk") for _ in range(50)]
    assert {future.result().output for future in futures} == {tool.run("price of raw silk").output}


def test_a_closed_tool_has_closed_its_database():
    tool = SearchTool(FACTS)
    tool.close()
    with pytest.raises(sqlite3.ProgrammingError):
        tool._database.execute("select 1")
