"""The page on clusters as a person would do it: a command that begins a cluster here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import demeanor as dm
from docs.documented import ROOT, commands

pytestmark = pytest.mark.long


def test_the_first_command_of_the_page_finds_over_workers_and_prints_results_alone(tmp_path: Path, organism: dm.Session) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`), so no cluster is begun")
    words = next(commands(ROOT / "docs" / "how-to" / "clusters.md")).words
    few = ("--max-prompts", "40", "--layer", "3", "--device", "cpu", "--json")
    sources = os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place)
    with tempfile.TemporaryDirectory(prefix="r") as own:  # where Ray looks for clusters of this machine; a short name, since that of a socket is
        alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": sources, "RAY_TMPDIR": own}
        ended = subprocess.run([sys.executable, "-m", "demeanor", *words, *few], cwd=tmp_path, env=alone, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "worker on 1 machine, each of" in ended.stderr
    found = json.loads(ended.stdout)
    here = dm.find(organism, "over-refusal", layer=3, max_prompts=40)
    assert found["site"] == str(here.site)
    assert found["separation"] == pytest.approx(here.separation, rel=1e-6)
