"""``ABSENT`` is one object, wherever it has been."""

from __future__ import annotations

import copy
import pickle

from skyward_etcd.collections.dict import ABSENT


def test_absent_is_itself_in_another_process_and_in_a_copy() -> None:
    assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
    assert copy.deepcopy([ABSENT])[0] is ABSENT
