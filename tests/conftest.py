"""How the suite runs everywhere the same: property tests try the same examples each time and have no time limit.

Also the option ``--update`` and the fixture ``check_pass`` of tests in IR text (see ``tests.textual``).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.textual import CheckPass

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update", action="store_true", help="rewrite the expected IR text of check_pass tests")


@pytest.fixture(scope="session")
def check_pass(pytestconfig: pytest.Config) -> Iterator[CheckPass]:
    # One for all: files are written at the end, since the tests know their places by the lines they began with.
    check = CheckPass(pytestconfig.getoption("--update"))
    yield check
    check.write()
