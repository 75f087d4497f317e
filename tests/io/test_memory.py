"""How much memory is left: what the system says, and what a limit leaves."""

from __future__ import annotations

import subprocess
import sys

from demeanor.io.memory import available

UNDER = """
import resource, sys
from demeanor.io.memory import available
resource.setrlimit(getattr(resource, sys.argv[1]), (3 * 10**9,) * 2)
print(available())
"""


def test_the_machine_has_some() -> None:
    room = available()
    assert room is not None
    assert 10**8 < room < 10**14


def test_a_limit_leaves_what_is_not_taken() -> None:
    for limit in ("RLIMIT_AS", "RLIMIT_DATA"):
        said = subprocess.run([sys.executable, "-c", UNDER, limit], capture_output=True, text=True, check=True).stdout
        assert 10**9 < int(said) < 3 * 10**9
