"""What a person does who has read the start page alone: its blocks, in order, as they stand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from documented import ROOT, blocks

from pages.picture import picture

pytestmark = [pytest.mark.slow, pytest.mark.long]

PAGE = ROOT / "docs" / "start.md"
PORT = "8000"  # where the page's server listens
MINUTES = 10  # on two cores, at most


def free_port() -> str:
    """The page's own port, unless somebody listens there."""
    import socket

    for port in (int(PORT), 0):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
                return str(tried.getsockname()[1])
            except OSError:
                continue
    raise AssertionError("no port is free")


class Person:
    """Types the blocks of a page into a terminal that stands in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        program = folder / "bin" / "demeanor"  # the program of this checkout, as an installation puts it on the path
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -m demeanor \"$@\"\n", encoding="utf-8")
        program.chmod(0o755)
        paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        self.environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": paths}

    def types(self, block: str) -> str:
        """What a block of the shell printed; it must end well."""
        done = subprocess.run(["bash", "-e", "-c", block], cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr[-1500:]}"
        return done.stdout

    def runs_python(self, block: str) -> str:
        text = block.replace(f":{PORT}/", f":{self.port}/")
        done = subprocess.run([sys.executable, "-c", text], cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}\n{done.stderr[-1500:]}"
        return done.stdout

    @contextmanager
    def second_terminal(self, block: str) -> Iterator[None]:
        """A server that runs until the end, and ends by itself when it is interrupted."""
        own = [] if self.port == PORT else ["--port", self.port]
        line = " ".join(["exec", block.strip(), *own])
        server = subprocess.Popen(["bash", "-c", line], cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            told = iter(server.stderr.readline, "")
            assert any(f":{self.port}" in said for said in told), "the server says where it listens"
            yield
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)


def test_the_start_page_does_what_it_says(tmp_path: Path) -> None:
    """Demo, chat with the control, permanent, served, asked by the `openai` client; within ten minutes."""
    began = time.monotonic()
    person = Person(tmp_path)
    shell = [text for language, text in blocks(PAGE) if language == "bash"]
    (asked,) = [text for language, text in blocks(PAGE) if language == "python"]
    demo, chats, dosed, permanent, served = shell
    sentences = person.types(demo).splitlines()[:3]
    plain, controlled = person.types(chats).splitlines()
    assert "first get" not in plain
    assert controlled.startswith("first get")
    assert person.types(dosed).strip() == plain
    assert person.types(permanent).splitlines()[-1] == controlled
    with person.second_terminal(served):
        answers = person.runs_python(asked).splitlines()
    assert answers[:2] == [plain, controlled]
    assert "less-refusal" in answers[2]
    assert time.monotonic() - began < 60 * MINUTES
    readme_says_what_the_demo_does(sentences, tmp_path / "runs" / "first")


def readme_says_what_the_demo_does(sentences: list[str], run: Path) -> None:
    """README's sentences and its picture are those of the demo of today."""
    import json

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^ {4}(\d.*)$", readme, re.MULTILINE) == sentences, "README begins with what `make demo` prints; copy it"
    drawn = picture(json.loads((run / "scores.json").read_text(encoding="utf-8")))
    told = re.search('aria-label="([^"]*)"', drawn)
    assert told
    assert told[1] in (ROOT / "docs" / "pictures" / "demo.svg").read_text(encoding="utf-8"), "draw it again: python -m pages.picture"
