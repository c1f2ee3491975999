"""The log takes what is logged and warned, and gives everything back as it was."""

import json
import logging
import os
import warnings

from perennial.core.log import JSON_VARIABLE, LOG_VARIABLE, logged, placed


def test_logs_and_warnings_go_to_the_file_and_nowhere_else(tmp_path, capfd):
    path = tmp_path / "log.txt"
    before = list(logging.getLogger().handlers)
    with logged(str(path)):
        assert os.environ[LOG_VARIABLE] == str(path)
        logging.getLogger("perennial.client.app").warning("node 7: late")
        warnings.warn("old name", FutureWarning, stacklevel=1)
    text = path.read_text()
    assert "WARNING" in text
    assert "node 7: late" in text
    assert "old name" in text
    assert LOG_VARIABLE not in os.environ
    assert logging.getLogger().handlers == before
    assert "late" not in capfd.readouterr().err


def test_without_a_path_nothing_changes():
    before = list(logging.getLogger().handlers)
    with logged(""):
        assert logging.getLogger().handlers == before
        assert LOG_VARIABLE not in os.environ


def test_every_line_says_where_in_a_run_it_was_written(tmp_path, monkeypatch):
    path, log = tmp_path / "log.txt", logging.getLogger("perennial.server")
    with logged(str(path)):
        log.warning("before")
        with placed(run="fleet", domain=2):
            with placed(round=3, node=7):
                log.warning("inside")
            log.warning("after")
    before, inside, after = path.read_text().splitlines()
    assert "perennial.server run=- domain=- round=- node=-: before" in before
    assert "run=fleet domain=2 round=3 node=7: inside" in inside
    assert "run=fleet domain=2 round=- node=-: after" in after

    monkeypatch.setenv(JSON_VARIABLE, "1")
    path = tmp_path / "log.jsonl"
    with logged(str(path)), placed(round=3):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("failed")
    line = json.loads(path.read_text())
    assert (line["round"], line["node"], line["message"]) == (3, None, "failed")
    assert line["traceback"].endswith("two\nlines")
