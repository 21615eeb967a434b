import random
import sqlite3

import pytest

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


def test_words_in_their_order_beat_the_same_words_scattered():
    with SearchTool(
        [
            "Hill Ada lives in the town of Ada Ford. Home of Ben Hill.",
            "The home town of Ada Hill is Ben Ford.",
        ]
    ) as tool:
        assert tool.run("home town of Ada Hill").output == "The home town of Ada Hill is Ben Ford."


def test_top_k_is_the_number_of_passages(tool):
    with SearchTool(FACTS, top_k=3) as three:
        assert len(three.run("population silk").output.splitlines()) == 3
    assert len(tool.run("population silk").output.splitlines()) == 2


def test_nothing_found_is_said_and_is_no_error(tool):
    for query in ("zebra", "", "   ", "?!", "_", '""'):
        result = tool.run(query)
        assert result.ok and result.output == "Nothing found."


def test_no_query_is_ever_an_exception(tool):
    rng = random.Random(0)
    pieces = [
        "silk",
        '"',
        "'",
        "*",
        "(",
        ")",
        "NEAR(",
        "AND",
        "OR",
        "NOT",
        "text:",
        "^",
        "-",
        "\x00",
        "\ud800",
        "世界",
        "a" * 1000,
        "\n",
        ";",
        "--",
        "population",
    ]
    for _ in range(500):
        assert tool.run(
            "".join(rng.choice(pieces) + rng.choice(("", " ")) for _ in range(rng.randrange(12)))
        ).ok


def test_long_passages_are_cut_in_the_middle():
    with SearchTool(["word " * 1000], max_output_chars=100) as tool:
        result = tool.run("word")
    assert result.truncated and "cut" in result.output and len(result.output) < 200


def test_documents_are_read_from_lines_and_from_json_lines(tmp_path):
    (tmp_path / "a.txt").write_text("first document\n\nsecond document\n")
    (tmp_path / "a.jsonl").write_text(
        '{"title": "Silk", "text": "It is soft."}\n{"text": "plain"}\n'
    )
    with (
        SearchTool(path=tmp_path / "a.txt") as lines,
        SearchTool(path=tmp_path / "a.jsonl") as objects,
    ):
        assert lines.run("second").output == "second document"
        assert (
            objects.run("silk").output == "Silk. It is soft."
            and objects.run("plain").output == "plain"
        )


def test_a_bad_file_is_named_with_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"body": "no text"}\n')
    with pytest.raises(ValueError, match="a.jsonl:2"):
        SearchTool(path=tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="nowhere.txt"):
        SearchTool(path="nowhere.txt")


def test_searches_from_many_threads_agree(tool):
    futures = [tool.submit("price of raw silk") for _ in range(50)]
    assert {future.result().output for future in futures} == {tool.run("price of raw silk").output}


def test_a_closed_tool_has_let_go_of_its_database():
    tool = SearchTool(FACTS)
    tool.close()
    with pytest.raises(sqlite3.ProgrammingError):
        tool._database.execute("select 1")
