"""Amounts, times, indices and directives as schedulers read them."""

import re
import shlex

from hypothesis import given
from hypothesis import strategies as st

from imgtool.schedulers.lsf import clock, directive_lines
from imgtool.schedulers.words import array_spec, memory_mb, memory_text


def test_memory_always_has_its_unit():
    assert [memory_text(memory_mb(text)) for text in ("4GB", "8 g", "800MB", "1.5GiB", "2TB")] == [
        "4GB", "8GB", "800MB", "1536MB", "2TB",
    ]  # fmt: skip


@given(st.sets(st.integers(1, 1000), min_size=1, max_size=60))
def test_index_lists_name_exactly_their_indices(indices):
    spec = array_spec(sorted(indices))
    named = []
    for part in spec.split(","):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(indices)


@given(st.floats(0.001, 1e6))
def test_run_limits_are_rounded_up(seconds):
    hours, minutes = clock(seconds).split(":")
    limit = (int(hours) * 60 + int(minutes)) * 60
    assert int(minutes) < 60
    assert 0 <= limit - seconds < 60


words = st.text(st.characters(codec="ascii", min_codepoint=32, exclude_characters='"\\`$%\x7f'))


@given(st.lists(words.filter(lambda w: not re.fullmatch(r"-[A-Za-z]+", w)), max_size=4))
def test_directives_are_read_back_as_they_were_meant(values):
    given_words = [word for value in values for word in ("-o", value)]
    lines = directive_lines(given_words)
    assert shlex.split(" ".join(line.removeprefix("#BSUB ") for line in lines)) == given_words
