"""`perennial export` and `perennial predict`: a run's export, its gate, texts good and bad."""

import io

import pytest

from perennial.cli.predicting import MOST_BYTES, read_lines


def lines(content, jsonl=False):
    return list(read_lines(io.BytesIO(content), jsonl=jsonl))


def test_each_bad_line_has_its_error_and_the_rest_its_text():
    found = lines(b"\xef\xbb\xbfone\r\n\n \t\ntw\xffo\n" + b"x" * (MOST_BYTES + 5) + b"\nlast")
    assert [line.text for line in found] == ["one", "", "", "", "", "last"]
    assert [line.number for line in found] == [1, 2, 3, 4, 5, 6]
    errors = [line.error for line in found]
    assert errors[1] == errors[2] == "must hold a text; it is empty"
    assert "byte 3 is 0xff" in errors[3]
    assert "got 65,542" in errors[4]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "must be JSON"),
        (b"[1]", 'string "text"'),
        (b'{"text": 3}', 'string "text"'),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b"[" * 60_000, "JSON"),
        (b'{"text": " "}', "empty"),
    ],
)
def test_malformed_json_is_named(content, words):
    (line,) = lines(content, jsonl=True)
    assert words in line.error
    assert not line.text


def test_json_lines_give_their_text():
    (line,) = lines(b'{"text": "h\\u00e9", "id": 3}\n', jsonl=True)
    assert line.text == "h\u00e9"
