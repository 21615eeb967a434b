import io
import re

from nanotir.show import Stream, colours_wanted, paint, show
from nanotir.trajectory import Format

PIECES = [("text", "Let me see, é世界."), ("python", "6*7"), ("output", "42"), ("text", "So 42.")]
plain = lambda text: re.sub(r"\x1b\[\d+m", "", text)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_text_code_and_output_have_different_colours(tokenizer):
    text = show(Format().trajectory(tokenizer, "6*7?", PIECES), tokenizer, colour=True)
    colours = {
        part: re.search(rf"\x1b\[(\d+)m[^\x1b]*{re.escape(part)}", text)[1]
        for part in ("Let me", "6*7</", "42</", "6*7?")
    }
    assert len(set(colours.values())) == 4


def test_no_colour_goes_to_pipes_nor_where_it_is_not_wanted(tokenizer, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colours_wanted(Terminal()) and not colours_wanted(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours_wanted(Terminal())
    assert "\x1b" not in show(
        Format().trajectory(tokenizer, "6*7?", PIECES), tokenizer, colour=False
    )
    assert paint("text", "", True) == ""


def test_a_stream_prints_id_by_id_what_show_prints_at_once(tokenizer, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    trajectory, out = Format().trajectory(tokenizer, "6*7?", PIECES), Terminal()
    stream = Stream(tokenizer, out=out)
    for span in trajectory.spans[1:]:
        for id in trajectory.ids[span.start : span.end]:
            stream(0, span.kind, [id])
            stream(1, "text", [id])  # another row's
    whole = (
        plain(show(trajectory, tokenizer, colour=True))
        .split("<|assistant|>")[1]
        .removesuffix("<|end|>")
    )
    assert plain(out.getvalue()) == whole and "\ufffd" not in whole
