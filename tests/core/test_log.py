"""The log takes what is logged and warned, and gives everything back as it was."""

import logging
import os
import warnings

from perennial.core.log import LOG_VARIABLE, logged


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
