"""A few of the kills of `python -m tests.fuzz.kills`."""

import os

import pytest

pytest.importorskip("pycolmap")
if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)


@pytest.mark.parametrize("out", ["m.h5", "d.db"])
def test_match_folder_killed_at_random_moments(out):
    from .kills import try_kills

    assert try_kills(out, 3, 0) == []
