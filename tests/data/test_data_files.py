"""What every file format shares: the laws of reading, and each fault with its message."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.core import plugins
from perennial.core.errors import ConfigError, DataError
from perennial.core.parts import Source
from perennial.core.values import Records, Splits

ROWS = [
    {"text": f"{label} {i}", "label": label, "domain": domain, "user": f"u{i % 3}"}
    for domain, label in (("bank", "lost"), ("bank", "fee"), ("clinic", "book"))
    for i in range(10)
]

Write = Callable[[Path, list[dict[str, str]]], str]


def write_csv(folder: Path, rows: list[dict[str, str]], name: str = "train") -> str:
    path = folder / f"{name}.csv"
    body = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(body) + "\n", encoding="utf-8")
    return str(path)


def write_jsonl(folder: Path, rows: list[dict[str, str]], name: str = "train") -> str:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_parquet(folder: Path, rows: list[dict[str, str]], name: str = "train") -> str:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'perennial[hub]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = folder / f"{name}.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}
WHOLE = {"test_rate": 0.0, "validation_rate": 0.0}
formats = pytest.mark.parametrize("name", WRITERS)


def read(name: str, **options: object) -> Splits:
    source: Source = plugins.load("data", name, options, Source)
    return source.read()


def whole(splits: Splits) -> Records:
    return splits.train + splits.validation + splits.test


@formats
def test_reads_columns_in_order_with_ids_by_split(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path, ROWS)
    splits = read(name, train=path, test=path, group="user")
    assert splits.train.texts == tuple(row["text"] for row in ROWS)
    assert splits.train.targets == tuple(row["label"] for row in ROWS)
    assert splits.train.domains == tuple(row["domain"] for row in ROWS)
    assert splits.train.groups == tuple(row["user"] for row in ROWS)
    assert len(set(splits.train.ids)) == len(ROWS)
    assert all(name.startswith("train:") for name in splits.train.ids)
    assert splits.test.ids[0] == splits.train.ids[0].replace("train:", "test:")
    assert len(splits.validation) == 0


@formats
def test_ids_stay_when_rows_move_come_and_go(name: str, tmp_path: Path) -> None:
    twins = [*ROWS, ROWS[3], ROWS[3]]
    before = read(name, train=WRITERS[name](tmp_path, twins), **WHOLE).train
    assert len(set(before.ids)) == len(twins)
    new = {"text": "new", "label": "fee", "domain": "bank", "user": "u0"}
    other = tmp_path / "next week"
    other.mkdir()
    moved = WRITERS[name](other, [new, *reversed(twins[:5]), *twins[7:]], "another name")
    after = read(name, train=moved, **WHOLE).train
    said = dict(zip(before.ids, before.texts, strict=True))
    assert sorted(said.get(id_, "") for id_ in after.ids) == sorted(["", *after.texts[1:]])
    assert [id_ in said for id_ in after.ids] == [text != "new" for text in after.texts]
    assert set(before.ids) - set(after.ids) == {before.ids[5], before.ids[6]}


@formats
def test_a_column_may_name_the_records(name: str, tmp_path: Path) -> None:
    rows = [{**row, "case": f" {i:03d}"} for i, row in enumerate(ROWS)]
    path = WRITERS[name](tmp_path, rows)
    assert read(name, train=path, test=path, id="case").train.ids[:2] == ("000", "001")
    twice = WRITERS[name](tmp_path, [*rows, rows[7]], "twice")
    with pytest.raises(DataError, match="'case' must name each record once; got '007' again"):
        read(name, train=twice, id="case")
    with pytest.raises(DataError, match="there must be a column 'no'"):
        read(name, train=path, id="no")
    more = WRITERS[name](tmp_path, rows[20:], "clinic")
    with pytest.raises(DataError, match=r"\[data.train\].*got '020' in two files"):
        read(name, train={"bank": path, "clinic": more}, id="case")


def test_a_nul_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [*ROWS, {**ROWS[0], "label": "lost\0"}])
    with pytest.raises(DataError, match="line 31: column 'label' must hold no NUL"):
        read("jsonl", train=path)


@formats
def test_without_a_test_file_train_is_split_the_same_way_each_time(
    name: str, tmp_path: Path
) -> None:
    path = WRITERS[name](tmp_path, ROWS)
    splits = read(name, train=path)
    assert splits == read(name, train=path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [21, 3, 6]
    assert sorted(whole(splits).texts) == sorted(row["text"] for row in ROWS)
    assert splits != read(name, train=path, split_seed=1)


@formats
def test_a_validation_file_leaves_only_test_to_hold_out(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path, ROWS)
    splits = read(name, train=path, validation=path)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [24, 30, 6]


@formats
def test_a_table_of_files_names_the_domains_and_keeps_ids_apart(name: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    paths = {f"d_{folder}": WRITERS[name](tmp_path / folder, rows) for folder in ("one", "two")}
    train = read(name, train=paths, test=paths).train
    assert train.domains == ("d_one", "d_one", "d_two", "d_two")
    assert len(set(train.ids)) == 4


@formats
def test_causal_columns_replace_text_and_label(name: str, tmp_path: Path) -> None:
    rows = [{"ask": f"q{i}", "answer": f" a{i}", "domain": "d"} for i in range(10)]
    splits = read(name, train=WRITERS[name](tmp_path, rows), prompt="ask", completion="answer")
    assert set(whole(splits).targets) == {f" a{i}" for i in range(10)}
    # Each completion is unlike the others: the split goes by domain alone.
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [7, 1, 2]


@formats
def test_the_default_domain_column_may_be_missing(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "x"} for i in range(4)]
    assert set(whole(read(name, train=WRITERS[name](tmp_path, rows))).domains) == {""}


@formats
@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"label": ""}, {}, "line {line}: column 'label' must not be empty"),
        ({"text": "  "}, {}, "line {line}: column 'text' must not be empty"),
        ({"domain": ""}, {}, "line {line}: column 'domain' must not be empty"),
        ({}, {"text": "body"}, "there must be a column 'body'; got 'text', 'label', 'domain'"),
        ({}, {"domain": "topic"}, "there must be a column 'topic'; got 'text'"),
        ({}, {"group": "team"}, "there must be a column 'team'; got 'text'"),
    ],
)
def test_faulty_cells_and_columns_are_named(
    name: str, change: dict[str, str], options: dict[str, str], message: str, tmp_path: Path
) -> None:
    rows = [*ROWS[:4], {**ROWS[4], **change}]
    path = WRITERS[name](tmp_path, rows)
    line = {"csv": 6, "jsonl": 5, "parquet": 5}[name]
    with pytest.raises(DataError, match=re.escape(message.format(line=line))) as caught:
        read(name, train=path, **options)
    assert path in str(caught.value)


@formats
def test_missing_files_are_named_with_where_they_were_sought(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train: there must be a file 'no\.x'; got nothing"):
        read(name, train="no.x")
    with pytest.raises(DataError, match=r"data\.train\.bank: .* got a folder at"):
        read(name, train={"bank": str(tmp_path)})
    with pytest.raises(DataError, match="must name at least one file"):
        read(name, train={})


def test_paths_start_at_the_current_folder_and_know_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path, ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("csv", train="train.csv") == read("csv", train="~/train.csv")


@formats
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "ask"}, r"\[data\.completion\] prompt and completion must be given together"),
        ({"completion": "say"}, r"\[data\.prompt\] prompt and completion must be given together"),
        ({"test_rate": 0.6, "validation_rate": 0.4}, "add up to less than 1; got test_rate 0.6"),
        ({"test_rate": -0.1}, "rates must be at least 0"),
        ({"test_rat": 0.1}, "did you mean 'test_rate'"),
        ({"train": 3}, r"\[data\.train"),
    ],
)
def test_faulty_options_are_refused_before_any_file_is_opened(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plugins.load("data", name, {"train": "nowhere", **options}, Source)


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_text_that_is_not_utf8_is_named_by_line(name: str, tmp_path: Path) -> None:
    path = Path(WRITERS[name](tmp_path, ROWS))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"caf\xe9,x,y,z\n", *lines[4:]]))
    with pytest.raises(DataError, match=r"line 4: must be UTF-8; got byte 0xe9"):
        read(name, train=str(path))


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_a_byte_order_mark_and_dos_line_ends_are_tolerated(name: str, tmp_path: Path) -> None:
    path = Path(WRITERS[name](tmp_path, ROWS))
    plain = read(name, train=str(path))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read(name, train=str(path)) == plain


@pytest.mark.parametrize(
    ("name", "content"), [("csv", ""), ("csv", "text,label\n"), ("jsonl", ""), ("jsonl", "\n\n")]
)
def test_empty_files_are_refused(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_text(content)
    with pytest.raises(DataError, match="empty: must hold at least one record; got none"):
        read(name, train=str(path))
