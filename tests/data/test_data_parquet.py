"""What is Parquet's own: the optional package, and files of another format."""

import sys
from pathlib import Path

import pytest

from perennial.core.errors import DataError
from perennial.data import parquet


def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.touch()
    with pytest.raises(DataError, match=r"pip install '\.\[hub\]'"):
        parquet.build(train=str(path)).read()


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pip install 'perennial[hub]'")
    path = tmp_path / "a.parquet"
    path.write_text("text,label\na,x\n")
    with pytest.raises(DataError, match=r"a\.parquet: must be a Parquet file; got"):
        parquet.build(train=str(path)).read()
