"""The files of a server and of a client: every fault at once, and paths as the file means them."""

import pytest

from perennial.core.errors import ConfigError, DataError
from perennial.core.fleet import read_client, read_server

SERVER = """
address = "10.0.0.1:9092"
[tls]
ca = "tls/ca.pem"
certificate = "tls/server.pem"
key = "/etc/key.pem"
"""
CLIENT = """
server = "fl.example.org:9092"
index = 2
clients = 3
[tls]
ca = "ca.pem"
[node]
"data.train" = "train.csv"
key-file = "seal.key"
max-epsilon = 4.0
"""


def written(tmp_path, text):
    path = tmp_path / "file.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path):
    server = read_server(written(tmp_path, SERVER))
    assert server.tls.ca == str(tmp_path / "tls" / "ca.pem")
    assert server.tls.key == "/etc/key.pem"
    assert server.state == str(tmp_path / "state")
    assert server.home == str(tmp_path)
    client = read_client(written(tmp_path, CLIENT))
    assert client.node == {
        "data.train": str(tmp_path / "train.csv"),
        "key-file": str(tmp_path / "seal.key"),
        "max-epsilon": 4.0,
    }
    assert client.key == str(tmp_path / "node.key")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SERVER.replace("10.0.0.1:9092", "10.0.0.1"), r"\[address\]"),
        (SERVER + "more = 1\n", r"\[tls.more\] unknown key"),
        ('address = "a:1"\n', r"\[tls\] must be given"),
        (CLIENT.replace("index = 2", "index = 3"), r"\[index\] must be below clients = 3"),
        (CLIENT + "partition-id = 1\n", r"\[node.partition-id\] unknown key"),
        (CLIENT + "max_delta = 1\n", r"\[node.max_delta\] unknown key.*'max-delta'"),
        (CLIENT + "max-delta = 0\n", r"\[node.max-delta\] must be a number above 0"),
        (CLIENT + "max-delta = 'x'\n", r"\[node.max-delta\] must be a number above 0"),
        (CLIENT + "identities = 'a\"b'\n", r"\[node.identities\] must be without quotes"),
        ('bundles = ["ab"]\n' + CLIENT, r"\[bundles\] must be SHA-256"),
        ('plugins = ["a b"]\n' + CLIENT, r"\[plugins\] must be names of modules"),
        ("index = -1\n" + CLIENT.replace("index = 2", ""), r"\[index\]"),
        ("=", "not valid TOML"),
    ],
)
def test_faults_are_named(text, words, tmp_path):
    read = read_server if "address" in text else read_client
    with pytest.raises(ConfigError, match=words):
        read(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="must be a readable file"):
        read_server(tmp_path / "none.toml")
