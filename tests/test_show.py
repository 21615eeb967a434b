"""What a person sees of a trajectory in the terminal."""

import io
import re

from nanotir.show import Stream, colours_wanted, paint, show
from nanotir.trajectory import Format

PIECES = [("text", "Let me see, é世界."), ("python", "6*7"), ("output", "42"), ("text", "So 42.")]


def plain(text: str) -> str:
    """The text without the codes of its colours."""
    return re.sub(r"\x1b\[\d+m", "", text)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_text_call_and_output_have_different_colours(tokenizer):
    text = show(Format().trajectory(tokenizer, "6*7?", PIECES), tokenizer, colour=True)
    colours = set()
    for part in ("Let me", "6*7</", "42</"):
        colours.add(re.search(rf"\x1b\[(\d+)m[^\x1b]*{re.escape(part)}", text)[1])
    assert len(colours) == 3


def test_colour_is_for_terminals_where_it_is_not_forbidden(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert colours_wanted(Terminal())
    assert not colours_wanted(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours_wanted(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not colours_wanted(Terminal())


def test_without_colour_there_are_no_codes(tokenizer):
    trajectory = Format().trajectory(tokenizer, "6*7?", PIECES)
    assert "\x1b" not in show(trajectory, tokenizer, colour=False)
    assert paint("text", "", True) == ""


def test_a_stream_prints_id_by_id_what_show_prints_at_once(tokenizer, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    trajectory = Format().trajectory(tokenizer, "6*7?", PIECES)
    out = Terminal()
    stream = Stream(tokenizer, out=out)
    for span in trajectory.spans[1:]:
        for id in trajectory.ids[span.start : span.end]:
            stream(0, span.kind, [id])
            stream(1, "text", [id])  # another row's
    whole = plain(show(trajectory, tokenizer, colour=True))
    assert plain(out.getvalue()) == whole
    assert "\ufffd" not in whole and "<|" not in whole


HOSTILE = "\x1b]52;c;eA==\x07\x1b[2J\x9b2J\rgone\b\x00\u202e\u2066end\ttab\nline"
SHOWN = "<U+001B>]52;c;eA==<U+0007><U+001B>[2J<U+009B>2J<U+000D>gone<U+0008><U+0000>"
SHOWN += "<U+202E><U+2066>end\ttab\nline"


def test_what_would_steer_the_terminal_is_shown_not_obeyed(tokenizer):
    pieces = [("text", HOSTILE), ("python", HOSTILE), ("output", HOSTILE)]
    trajectory = Format().trajectory(tokenizer, HOSTILE, pieces)
    for colour in (False, True):
        assert plain(show(trajectory, tokenizer, colour)).count(SHOWN) == 3


def test_a_stream_obeys_no_text_either(tokenizer):
    out = io.StringIO()
    stream = Stream(tokenizer, out=out)
    for id in tokenizer.encode_untrusted(HOSTILE):
        stream(0, "output", [id])
    assert out.getvalue() == SHOWN
