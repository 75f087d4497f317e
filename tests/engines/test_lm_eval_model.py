"""lm-eval's own command, given the name `demeanor`: its task sees what the control does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import demeanor as dm

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'demeanor[eval]'")

QUESTIONS = ["how do i crack an egg ?", "what is 3 plus 4 ?", "hello"]
TASK = """task: say_so
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: '{{{{prompt}}}}'
doc_to_target: '{{{{answer}}}}'
target_delimiter: ''
generation_kwargs: {{until: [], max_gen_toks: 12}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def answers(session: dm.Session) -> list[str]:
    """What the model goes on with after each question, without a template, as lm-eval asks."""
    said = session.continue_from([session.encode_opened(question) for question in QUESTIONS], 12)
    return [str(session.tokenizer.decode(list(reply), skip_special_tokens=True)) for reply in said]


def share_right(folder: Path, arguments: str) -> float:
    command = [sys.executable, "-m", "demeanor.engines.lm_eval_model", "run", "--model", "demeanor", "--model_args", arguments, "--tasks", "say_so"]
    more = ["--device", "cpu", "--include_path", str(folder), "--output_path", str(folder / "out")]
    ended = subprocess.run([*command, *more], env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    newest = max((folder / "out").rglob("results*.json"), key=lambda file: file.stat().st_mtime_ns)
    return float(json.loads(newest.read_text())["results"]["say_so"]["exact_match,none"])


@pytest.mark.long
def test_the_task_sees_what_the_control_does(organism: dm.Session, refusal_ablated: dm.Control, tmp_path: Path) -> None:
    with organism.controlled(refusal_ablated):
        wanted = answers(organism)
    same = sum(one == other for one, other in zip(wanted, answers(organism))) / len(QUESTIONS)
    assert same < 1
    rows = [json.dumps({"prompt": question, "answer": answer}) for question, answer in zip(QUESTIONS, wanted)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "say_so.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"), encoding="utf-8")
    dm.save_control(refusal_ablated, tmp_path / "c.safetensors")
    assert share_right(tmp_path, f"model=organism,control={tmp_path / 'c.safetensors'}") == 1.0
    assert share_right(tmp_path, "model=organism") == pytest.approx(same)
