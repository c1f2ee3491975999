"""Ed25519 keys in files: made for their owner alone, and bad ones named."""

import pytest

from perennial.core.errors import DataError
from perennial.privacy import signing


def test_keys_are_their_owners_and_bad_ones_are_named(tmp_path):
    path = tmp_path / "deep" / "release.key"
    key = signing.key(path)
    assert path.stat().st_mode & 0o077 == 0
    assert signing.public(signing.key(path)) == signing.public(key)
    assert signing.trusted(tmp_path / "deep" / "release.key.pub") == {signing.public(key)}
    assert signing.signed(signing.public(key), signing.sign(key, b"a"), b"a")
    assert not signing.signed(signing.public(key), signing.sign(key, b"a"), b"b")
    assert not signing.signed("zz", "", b"b")
    path.write_text("12\n")
    with pytest.raises(DataError, match="64 hex digits"):
        signing.key(path)
    for bad in ("", "# none\n", "xy\n", "ab\n"):
        path.write_text(bad)
        with pytest.raises(DataError):
            signing.trusted(path)
    with pytest.raises(DataError, match="public keys"):
        signing.trusted(tmp_path / "none")
