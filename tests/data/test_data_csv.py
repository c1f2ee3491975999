"""What is CSV's own: quoting, fields that span lines, malformed lines."""

from pathlib import Path

import pytest

from perennial.core.errors import DataError
from perennial.core.values import Records
from perennial.data import csv


def train(path: Path, content: str) -> Records:
    path.write_text(content, encoding="utf-8")
    return csv.build(train=str(path), test_rate=0.0, validation_rate=0.0).read().train


def test_quotes_commas_and_line_breaks_inside_fields(tmp_path: Path) -> None:
    records = train(tmp_path / "a.csv", 'text,label\n"one, ""two""\nthree",x\n\nfour, y \n')
    assert records.texts == ('one, "two"\nthree', "four")
    assert records.targets == ("x", "y")
    assert len(set(records.ids)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,x\nb,x,y\n", "line 3: must have the header's 2 fields; got 3"),
        ("text,label\na,x\nb\n", "line 3: must have the header's 2 fields; got 1"),
        ('text,label\n"a\nb",x\n"c" d,x\n', "line 4: must be CSV; got"),
        ('text,label\na,x\n"b,x\n', "line 3: must be CSV; got"),
        ("text,label,text\na,x,b\n", "line 1: column names must differ; got twice: .'text'"),
        ('text,label\n"a\nb",x\nc,\n', "line 4: column 'label' must not be empty"),
    ],
)
def test_malformed_lines_are_named(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        train(tmp_path / "a.csv", content)


def test_clinc150_is_read_whole() -> None:
    folder = Path(csv.__file__).resolve().parents[1].parent / "shared" / "data" / "clinc150"
    if not folder.is_dir():
        pytest.skip(f"CLINC150 is not there: {folder} does not exist; nothing real was read")
    parts = {name: str(folder / f"{name}.csv") for name in ("train", "validation", "test")}
    splits = csv.build(**parts).read()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [
        15000,
        3000,
        4500,
    ]
    assert len(set(splits.train.targets)) == 150
    assert len(set(splits.train.domains)) == 10
