import pytest

from geomtx.report.text import count, format_value, round_length, shorten


def test_numbers_on_pictures() -> None:
    assert [format_value(v) for v in (0, 2.0, 12.345, 123.4, 0.01234, 1e-5, 2e6, -3.0)] == [
        "0", "2.00", "12.3", "123", "0.0123", "1.00e-05", "2.00e+06", "-3.00",
    ]  # fmt: skip
    assert [round_length(v) for v in (1, 4.9, 0.7, 30, 0.05)] == [1, 2, 0.5, 20, 0.05]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 points"), (1, "1 point"), (2, "2 points"), (12345, "12 345 points")]
)
def test_counts(number: int, text: str) -> None:
    assert count(number, "point") == text


def test_a_long_text_loses_its_middle() -> None:
    assert shorten("abcdefghij", 10) == "abcdefghij"
    assert shorten("abcdefghij", 6) == "abc…ij"
    assert shorten("abcdefghij", 5) == "ab…ij"
