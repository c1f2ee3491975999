"""What is JSON lines' own: malformed lines, cells that are no text."""

from pathlib import Path

import pytest

from perennial.core.errors import DataError
from perennial.core.values import Records
from perennial.data import jsonl


def train(path: Path, content: str) -> Records:
    path.write_text(content, encoding="utf-8")
    source = jsonl.build(train=str(path), group="user", test_rate=0.0, validation_rate=0.0)
    return source.read().train


def test_numbers_are_labels_and_groups_may_be_null(tmp_path: Path) -> None:
    content = '{"text": "a", "label": 3, "user": null}\n\n{"text": "b", "label": 4, "user": 7}\n'
    records = train(tmp_path / "a.jsonl", content)
    assert records.targets == ("3", "4")
    assert records.groups == ("", "7")
    assert len(set(records.ids)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b", ', "line 2: must be one JSON object; got: .* at column"),
        ("[1, 2]", "line 2: must be one JSON object; got list"),
        ('{"text": ["b"], "label": "x", "user": ""}', "line 2: column 'text' must hold text; got"),
        ('{"text": "b", "label": true, "user": ""}', "'label' must hold text; got bool True"),
        ('{"text": null, "label": "x", "user": ""}', "line 2: column 'text' must not be empty"),
        ('{"text": "b", "user": ""}', "line 2: there must be a column 'label'; got 'text', 'user'"),
    ],
)
def test_malformed_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        train(tmp_path / "a.jsonl", '{"text": "a", "label": "x", "user": "u"}\n' + line + "\n")


def test_one_line_without_its_domain_is_a_fault_where_others_have_one(tmp_path: Path) -> None:
    first = '{"text": "a", "label": "x", "user": "", "domain": "d"}\n'
    second = '{"text": "a", "label": "x", "user": ""}\n'
    with pytest.raises(DataError, match="line 2: there must be a column 'domain'"):
        train(tmp_path / "a.jsonl", first + second)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b \\ud800", "label": "x"}', r"line 1: column 'text' must be Unicode"),
        ('{"text": "b", "label": "\\udfff"}', r"line 1: column 'label' must be Unicode"),
        ('{"text": "b", "label": ' + "1" * 5000 + "}", "line 1: must be one JSON object"),
        ("[" * 100_000, "line 1: must be one JSON object"),
    ],
)
def test_json_that_no_record_can_hold(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(tmp_path / "a.jsonl", line)
