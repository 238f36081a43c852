"""A seeded slice of the operator's fuzz."""

import pytest

from .operator import check


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_random_calls_equal_the_reference(first):
    for seed in range(first, first + 25):
        check(seed)
