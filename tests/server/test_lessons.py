"""What the server notes at the end of a domain of those who were not there."""

from perennial.server.knowledge import Knowledge
from perennial.server.lessons import absent


def test_absent_is_who_is_connected_or_was_counted_before_and_is_not_counted_now():
    known = Knowledge(counted={1: (0,), 2: (0,), 9: (0,)})
    assert absent([1, 2, 3], known, (1, 2, 3)) == 1  # 9 has left, and is missed
    assert absent([1, 2, 3], known, (1,)) == 3
    assert absent([1, 2, 3], Knowledge(), (1, 2, 3)) == 0
    assert absent([1, 2, 3], Knowledge(), ()) == 3
