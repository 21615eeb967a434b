from nanotir.tools import Tool, ToolResult
from nanotir.tools.tool import cut_middle


class Echo(Tool):
    name = "echo"

    def run(self, text, session=None):
        return ToolResult(text.upper())


def test_submit_gives_what_run_gives():
    with Echo() as tool:
        assert [tool.submit(text).result() for text in "ab"] == [tool.run(text) for text in "ab"]


def test_what_fits_is_not_cut():
    assert cut_middle("x" * 10, 10) == ("x" * 10, False)


def test_a_cut_keeps_both_ends_and_says_how_much_is_missing():
    text, cut = cut_middle("a" * 50 + "b" * 50 + "c" * 50, 11)
    assert cut and text == "aaaaaa\n[... 139 characters cut ...]\nccccc"


def test_a_cut_counts_what_was_lost_before_too():
    assert cut_middle("aaacc", 5, missing=7) == ("aaa\n[... 7 characters cut ...]\ncc", True)
    text, cut = cut_middle("aaaaaaaccccccc", 10, missing=7)
    assert cut and text == "aaaaa\n[... 11 characters cut ...]\nccccc"
