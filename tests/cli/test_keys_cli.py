import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from perennial.cli.keys import words
from perennial.cli.main import app
from perennial.core.errors import ConfigError, DataError
from perennial.core.sums import Scheme
from perennial.privacy import keys

WORDS = "correct horse battery"
SCHEME = Scheme("bfv", 4096, (288230376151130113,), 0, 281474976694273, 0.0, "symmetric")

# Sums from outside, so that this does not hang on what the sums of the package are called.
PLUGIN = """
from types import SimpleNamespace
from perennial.core.parts import SecureSum
from perennial.core.sums import Scheme

def build(*, encrypted: bool = True, model: str = "symmetric") -> SecureSum:
    scheme = Scheme("bfv", 4096, (288230376151130113,), 0, 281474976694273, 0.0, model)
    return SimpleNamespace(
        single_updates=False, pairwise=False, drops=False, min_clients=0, capacity=0,
        scheme=scheme if encrypted else None,
    )
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "modules" / "outside").mkdir(parents=True)
    (tmp_path / "modules" / "outside" / "__init__.py").write_text("")
    (tmp_path / "modules" / "outside" / "sum.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setenv(keys.PASSPHRASE, WORDS)
    monkeypatch.delenv(keys.PASSPHRASE_FILE, raising=False)
    monkeypatch.setenv("COLUMNS", "140")
    path = tmp_path / "c.toml"
    path.write_text(
        '[data]\nname = "sample"\n[round]\nweight = "uniform"\n[secure_sum]\nname = "outside.sum"\n'
    )
    yield path
    for name in ("outside", "outside.sum"):
        sys.modules.pop(name, None)


def perennial(*arguments, **more):
    return CliRunner().invoke(app, [str(a) for a in arguments], **more)


def test_keys_from_a_config_to_a_table(config, tmp_path):
    folder = tmp_path / "keys"
    made = perennial("keys", "init", config, folder)
    assert made.exit_code == 0, made.output
    card = keys.card(folder)
    assert card.scheme == SCHEME
    assert card.fingerprint in made.output
    assert f"{folder}/0001/client.key  (SECRET)" in made.output
    assert "then delete it here" in made.output

    renewed = perennial("keys", "rotate", folder)
    assert renewed.exit_code == 0, renewed.output
    assert keys.card(folder).fingerprint in renewed.output
    assert "restart the key holder" in renewed.output

    shown = perennial("keys", "show", folder).output
    assert "0001" in shown
    assert "0002 (current)" in shown
    assert "holder.key 0600" in shown

    rows = json.loads(perennial("keys", "show", folder, "--json").output)
    assert [row["current"] for row in rows] == [False, True]
    assert rows[0]["fingerprint"] == card.fingerprint
    assert rows[0]["scheme"] == "bfv, degree 4096, q 58 bits, t 48 bits, symmetric"
    assert rows[1]["files"] == dict.fromkeys(["card.json", "client.key", "holder.key"], "0600")


def test_public_keys_are_no_secret(config, tmp_path):
    setting = "secure_sum.model=public"
    made = perennial("keys", "init", config, tmp_path / "keys", "--set", setting)
    assert made.exit_code == 0, made.output
    assert "client.key  (public)" in made.output
    assert "delete" not in made.output


def test_a_sum_without_a_key(config, tmp_path):
    setting = "secure_sum.encrypted=false"
    found = perennial("keys", "init", config, tmp_path / "keys", "--set", setting)
    assert isinstance(found.exception, ConfigError)
    assert "[secure_sum.name] 'outside.sum' needs no key" in str(found.exception)
    assert not (tmp_path / "keys").exists()


def test_nobody_to_ask_for_a_passphrase(config, tmp_path, monkeypatch):
    monkeypatch.delenv(keys.PASSPHRASE)
    found = perennial("keys", "init", config, tmp_path / "keys", input="")
    assert isinstance(found.exception, DataError)
    assert "Set PERENNIAL_KEY_PASSPHRASE_FILE" in str(found.exception)


def test_a_new_passphrase_is_typed_twice_and_an_old_one_once(config, tmp_path, monkeypatch):
    monkeypatch.delenv(keys.PASSPHRASE)
    asked = []

    def prompt(text, *, hide_input, confirmation_prompt):
        asked.append((hide_input, confirmation_prompt))
        return WORDS

    monkeypatch.setattr("perennial.cli.keyholder.typer.prompt", prompt)
    monkeypatch.setattr("perennial.cli.keyholder._at_terminal", lambda: True)
    assert perennial("keys", "init", config, tmp_path / "keys").exit_code == 0
    assert perennial("keys", "rotate", tmp_path / "keys").exit_code == 0
    assert asked == [(True, True), (True, False)]


def test_schemes_in_words():
    ckks = Scheme("ckks", 8192, (2**60 - 1, 2**40 - 1), 2**60 - 1, 0, 2.0**40, "public")
    assert words(ckks) == "ckks, degree 8192, q 60+40 bits, scale 2^40, public"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keys", "show", "nowhere"], "nowhere must hold keys"),
        (["keys", "rotate", "nowhere"], "perennial keys init CONFIG nowhere"),
        (["keyholder", "none.toml"], "none.toml must be a key holder's config"),
        (["keyholder", "bad.toml"], "[tls] must be given"),
        (["keyholder", "bad.toml"], "[keyz] unknown key; did you mean 'keys'?"),
    ],
)
def test_faults_are_one_message_and_an_exit_code(arguments, message, tmp_path):
    text = 'keys = "k"\n' if "[tls]" in message else 'keyz = "k"\n'
    (tmp_path / "bad.toml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "perennial", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, keys.PASSPHRASE: WORDS},
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_help_loads_nothing_that_decrypts():
    code = (
        "import sys; from perennial.cli.main import app; import perennial.cli.keys; "
        "sys.exit(bool({'tenseal', 'grpc', 'torch', 'rich.table'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
