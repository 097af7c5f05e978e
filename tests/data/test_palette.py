import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.data.palette import CLASSES, MASK_NAMES, PALETTE, class_map, unmatched_share

level = st.integers(0, 255)


def test_every_palette_colour_is_found_exactly() -> None:
    image = np.array(PALETTE, np.uint8)[None]
    assert class_map(image).tolist() == [list(range(10))]


def test_the_table_is_the_reference_s() -> None:
    assert MASK_NAMES[0] == "bed"
    assert CLASSES["bed"] == (228, 26, 28)  # levels below 64, which truncation used to lose
    assert CLASSES["sofa"] == (255, 255, 51)
    assert CLASSES["background"] == (240, 240, 240)
    assert len(MASK_NAMES) == 10


@pytest.mark.parametrize("value", range(1, 64))
def test_low_levels_are_looked_up_as_stored(value: int) -> None:
    for number, colour in enumerate(PALETTE):
        for channel in range(3):
            changed = [*colour]
            changed[channel] = value
            expected = PALETTE.index(tuple(changed)) if tuple(changed) in PALETTE else 255
            assert class_map(np.array([[changed]], np.uint8))[0, 0] == expected
        assert class_map(np.array([[colour]], np.uint8))[0, 0] == number


@pytest.mark.parametrize("step", [-1, 1])
def test_a_level_off_is_no_palette_colour(step: int) -> None:
    for colour in PALETTE:
        for channel in range(3):
            near = [*colour]
            near[channel] += step
            if 0 <= near[channel] <= 255:
                assert class_map(np.array([[near]], np.uint8))[0, 0] == 255


@given(st.lists(st.one_of(st.tuples(level, level, level), st.sampled_from(PALETTE)), min_size=1))
def test_lookup_agrees_with_a_dictionary(colours: list[tuple[int, int, int]]) -> None:
    known = {colour: number for number, colour in enumerate(PALETTE)}
    found = class_map(np.array([colours], np.uint8))
    assert found.dtype == np.uint8
    assert found[0].tolist() == [known.get(colour, 255) for colour in colours]


def test_floats_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8"):
        class_map(np.zeros((2, 2, 3), np.float32))  # type: ignore[arg-type]


def test_unmatched_share() -> None:
    assert unmatched_share(np.array([[255, 1], [2, 9]], np.uint8)) == 0.25
