"""The tally of these suites; see tests/faults."""

from collections.abc import Callable

import pytest


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Count the cases of a test that tries more than one."""

    def count(cases: int) -> None:
        request.node.user_properties.append(("cases", cases))

    return count
