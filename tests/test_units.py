import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.errors import UsageError
from imgtool.units import format_bytes, format_duration, parse_duration, parse_interval


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        ("3h", 10800),
        ("1.5h", 5400),
        ("2d", 172800),
        ("1h30m", 5400),
        (".5s", 0.5),
        (42, 42),
    ],
)
def test_durations_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "3 hours", "-3h", "1h30", "nan", "inf", "3x", True])
def test_what_is_no_duration(text):
    with pytest.raises(UsageError, match="duration|mixes"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "found"), [("1000", 1000), ("3ep", "3ep"), (" 03EP ", "3ep")])
def test_intervals(text, found):
    assert parse_interval(text) == found


@pytest.mark.parametrize("text", ["", "0", "0ep", "ep", "1.5ep", "-3", "3 ep", "3h"])
def test_what_is_no_interval(text):
    with pytest.raises(UsageError, match="neither iterations, such as 1000, nor epochs"):
        parse_interval(text)


@given(st.integers(0, 10**7))
def test_formatted_durations_are_read_back_within_their_precision(seconds):
    assert abs(parse_duration(format_duration(seconds)) - seconds) <= max(60, seconds * 0.04)


def test_bytes():
    assert [format_bytes(n) for n in (17, 4200, 1.3e9, 2e13)] == [
        "17 B",
        "4.2 kB",
        "1.3 GB",
        "20.0 TB",
    ]
