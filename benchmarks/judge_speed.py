"""How many replies a second the judge of refusals reads, on one core.

    python benchmarks/judge_speed.py FILE.csv [--reply completion] [--prompt prompt]

The first pass fills the judge's cache of words; the best of five passes after it counts, in processor time.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

from demeanor.detect.judge import judge

PASSES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Replies a second that the judge reads.")
    parser.add_argument("files", nargs="+", type=Path, help="CSV files with a reply a row")
    parser.add_argument("--reply", default="completion", help="column of replies")
    parser.add_argument("--prompt", default="prompt", help="column of prompts")
    arguments = parser.parse_args()
    rows = [row for path in arguments.files for row in csv.DictReader(path.open(encoding="utf-8", newline=""))]
    replies, prompts = [row[arguments.reply] for row in rows], [row[arguments.prompt] for row in rows]
    judge(replies, prompts)
    taken = []
    for _ in range(PASSES):
        start = time.process_time()
        judge(replies, prompts)
        taken.append(time.process_time() - start)
    size = sum(map(len, replies)) / len(replies)
    print(f"{len(replies) / min(taken):.0f} replies a second ({len(replies)} replies, {size:.0f} characters on average)")


if __name__ == "__main__":
    main()
