"""What a user gets: `python -m release.check_wheel [FOLDER]` builds the sdist, the wheel from it, installs the wheel alone in an empty
environment and runs the demo there. It needs a package registry, and prints what it measures. FOLDER (`dist` unless given) holds the two files."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEEL_MB = 12  # at most
DEMO_SECONDS = 60  # at most, once it is installed


def main(folder: Path) -> int:
    """Exit code 0 where everything holds, 1 otherwise."""
    wheel = build(folder)
    megabytes = wheel.stat().st_size / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        python = Path(scratch) / "empty" / "bin" / "python"
        seconds = install(wheel, python)
        names = installed(python)
        tools = sorted(names & only_for_makers())
        demo, processor = run_demo(python, Path(scratch))
    print(f"wheel            {megabytes:.1f} MB (at most {WHEEL_MB})")
    print(f"installed        {len(names)} packages in {seconds:.0f} s")
    print(f"tools of makers  {', '.join(tools) or 'none'}")
    print(f"demo             {demo:.0f} s (at most {DEMO_SECONDS}; {processor:.0f} s of processor time: more than that by the clock is other work on the machine)")
    return int(megabytes > WHEEL_MB or bool(tools) or demo > DEMO_SECONDS)


def build(folder: Path) -> Path:
    """The sdist, and the wheel that is built from it and not from the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    hatchling = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*hatchling, "-t", "sdist", "-d", folder.resolve()], cwd=ROOT, check=True)
    sdist = max(folder.glob("demeanor-*.tar.gz"), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory() as unpacked, tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
        subprocess.run([*hatchling, "-t", "wheel", "-d", folder.resolve()], cwd=next(Path(unpacked).iterdir()), check=True)
    return max(folder.glob("demeanor-*.whl"), key=lambda path: path.stat().st_mtime)


def install(wheel: Path, python: Path) -> float:
    """Seconds that the installation of the wheel took, with the tested versions and without any extra."""
    venv.create(python.parents[1], with_pip=True)
    began = time.monotonic()
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt", wheel]
    subprocess.run(pip, check=True)
    return time.monotonic() - began


def installed(python: Path) -> set[str]:
    listed = subprocess.run([python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True).stdout
    return {named(line) for line in listed.splitlines()}


def only_for_makers() -> set[str]:
    """What the extra `dev` names itself and the package does not."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    makers = {named(line) for line in project["optional-dependencies"]["dev"]} - {"demeanor"}
    shared = {"filelock", "httpx"}  # which libraries that a user needs bring too
    return makers - {named(line) for line in project["dependencies"]} - shared


def named(requirement: str) -> str:
    """The name in a requirement, as indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()


def run_demo(python: Path, scratch: Path) -> tuple[float, float]:
    """Seconds of the demo in that environment, by the clock and of processor time; its first lines are printed."""
    began, used = time.monotonic(), _processor()
    command = [python.parent / "demeanor", "run", "organism", "--behaviour", "over-refusal", "-o", scratch / "demo"]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"The demo ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    print("\n".join(done.stdout.splitlines()[:3]))
    return time.monotonic() - began, _processor() - used


def _processor() -> float:
    """Seconds of processor time of all processes that ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
