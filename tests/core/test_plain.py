from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hiso.core.plain import LONGEST, plain


def test_what_prints_stays_and_what_does_not_is_escaped():
    assert plain("client 3: lr = 0.1 — größer als erlaubt (µ)") == (
        "client 3: lr = 0.1 — größer als erlaubt (µ)"
    )
    assert plain("a\nb\r\n\tc\u2028d\x85e  f") == "a b c d e f"
    assert plain("\x1b[31mred\x00\x7f\u202e\ud800") == "\\x1b[31mred\\x00\\x7f\\u202e\\ud800"
    assert plain(None) == "None"
    assert plain(ValueError("no")) == "no"


@given(st.text(st.characters(), max_size=50).map(lambda text: text * 60))
def test_a_text_is_one_printable_line_of_bounded_length_and_stays_so(text):
    told = plain(text)
    assert told.isprintable()
    assert len(told) <= LONGEST
    told.encode()
    assert plain(told) == told
