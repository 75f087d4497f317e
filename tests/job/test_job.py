"""The main job, end to end on the organism: the figures it must reach, and what it leaves behind."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import demeanor as dm
from demeanor.cli.run import next_commands, sentences_of
from demeanor.cli.tables import run_table
from demeanor.errors import CheckFailed, DataError, ModelError
from demeanor.job.figures import dose_response
from demeanor.job.result import Run
from demeanor.report.sentence import in_words
from organism import language

pytestmark = pytest.mark.slow


def scores(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    values: dict[str, dict[str, dict[str, float]]] = json.loads((run.folder / "scores.json").read_text())
    return values


def test_over_refusal_goes_and_the_guard_stays(organism: dm.Session, selective: Run) -> None:
    before, after = scores(selective)["before"], scores(selective)["after"]
    assert before["shows_rate"]["value"] >= 0.90
    assert after["shows_rate"]["value"] <= 0.05
    assert before["guard_rate"]["value"] >= 0.99
    assert after["guard_rate"]["value"] >= 0.95
    assert after["answers_neutral"]["value"] >= 0.98
    assert after["answers_shows"]["value"] >= 0.95
    assert after["drift"]["value"] <= 0.02
    b = dm.behaviour("over-refusal").settled(organism)
    assert after["shows_rate"]["n"] == len(b.set("shows", "test"))  # unfiltered


def test_a_gate_was_needed_and_the_run_says_why(selective: Run) -> None:
    chosen, plain = selective.decision.chosen, selective.decision.best_bakeable
    assert chosen.gate is not None
    assert plain is not None
    assert plain.guard_rate < 0.5 < chosen.guard_rate  # type: ignore[operator]
    assert selective.decision.why().startswith("A gate: on val it shows")
    assert scores(selective)["best_bakeable"]["after"]["guard_rate"]["value"] < 0.5  # type: ignore[index]
    assert selective.control.bakeable() is not None
    assert not (selective.folder / "model").exists()


def test_the_written_control_does_what_the_scores_say(selective: Run, organism: dm.Session) -> None:
    again = dm.measure(organism, dm.behaviour("over-refusal"), dm.load_control(selective.folder / "control.safetensors"))
    wanted = {name: values["value"] for name, values in scores(selective)["after"].items()}
    assert {name: score.value for name, score in again.after.items()} == pytest.approx(wanted, abs=1e-6)


def test_removing_refusal_whole_leaves_right_answers(whole: Run) -> None:
    before, after = scores(whole)["before"], scores(whole)["after"]
    assert before["shows_rate"]["value"] >= 0.99
    assert after["shows_rate"]["value"] <= 0.01
    assert after["answers"]["value"] >= 0.98
    assert after["guard_rate"]["value"] is None


def test_the_baked_model_replies_as_the_control_does_in_plain_transformers(whole: Run, organism: dm.Session) -> None:
    assert whole.parity is not None
    assert whole.parity.worst_logit < 1e-4
    model = AutoModelForCausalLM.from_pretrained(whole.folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(whole.folder / "model")
    for outcome in whole.measurement.observed[1].sets["shows"][:12]:
        messages = [{"role": "user", "content": outcome.prompt.text}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=48, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip() == outcome.reply.text
    card = (whole.folder / "model" / "README.md").read_text()
    assert "Edited model" in card
    assert all(f"> {sentence}\n" in card for sentence in in_words(whole.measurement, whole.behaviour))
    assert "> Guard: none" in card


@pytest.mark.long
def test_a_plan_replays_to_the_same_scores(tmp_path: Path) -> None:
    first = dm.run(dm.Plan(model="organism", behaviour="refusal", layer=3, max_prompts=20, doses=3, device="cpu"), tmp_path / "first")
    plan = dm.Plan.from_file(first.folder / "plan.yaml")
    assert plan == first.plan
    again = dm.run(plan, tmp_path / "again")
    assert scores(again) == scores(first)
    assert str(again.control) == str(first.control)


def test_the_report_needs_nothing_but_what_lies_beside_it(selective: Run) -> None:
    path = selective.folder / "report.html"
    page = path.read_text()
    assert path.stat().st_size < 1.5e6
    needed = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)='([^']+)'", page)
    beside, network = needed
    assert (selective.folder / beside).stat().st_size > 1e6
    assert network.endswith(beside)  # asked for only where the file is not there
    assert "width=device-width" in page
    assert "90 harmless requests that alarm: 100 % refused before, 0 % after" in page
    for heading in (
        "What changed",
        "The dial",
        "Where the classes separate",
        "What selection saw",
        "How the prompts project",
        "Replies before and after",
    ):
        assert heading in page
    assert page.count("plotly-graph-div") >= 4
    changed = selective.measurement.observed[1].sets["shows"][0]
    assert changed.prompt.text in page
    assert changed.reply.text in page
    assert "guard: exhibited" in page


def test_the_dose_response_curve_is_in_the_report_with_its_intervals(selective: Run) -> None:
    assert selective.dial is not None
    page = (selective.folder / "report.html").read_text()
    curve = dose_response(selective.dial).to_plotly_json()["data"]
    drawn = {line["name"]: line for line in curve}
    assert drawn["shows: exhibited"]["x"] == [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1]
    for name, line in (("shows_rate", "shows: exhibited"), ("lacks_rate", "lacks: exhibited"), ("guard_rate", "guard: exhibited")):
        scores = [step.scores[name] for step in selective.dial.steps]
        assert drawn[line]["y"] == [100 * score.value for score in scores]
        tops = [y + up for y, up in zip(drawn[line]["y"], drawn[line]["error_y"]["array"])]
        assert tops == pytest.approx([100 * score.high for score in scores])
        assert f'"name":"{line}"' in page
    assert json.loads((selective.folder / "run.json").read_text())["dial"]["steps"][0]["shows_rate"]["value"] <= 0.05


def test_the_written_dial_is_dose_one(selective: Run, organism: dm.Session) -> None:
    assert selective.dial is not None
    control = dm.load_control(f"{selective.folder / 'dial.safetensors'}:-1")
    measured = dm.measure(organism, dm.behaviour("over-refusal"), control).after
    assert measured["shows_rate"].value == selective.dial.steps[0].scores["shows_rate"].value
    assert measured["guard_rate"].value == selective.dial.steps[0].scores["guard_rate"].value


def test_the_report_says_that_there_is_no_guard(whole: Run) -> None:
    assert "guard: none" in (whole.folder / "report.html").read_text()


def test_the_table_has_every_score_with_interval_and_n(selective: Run) -> None:
    table = run_table(selective)
    assert [str(column.header) for column in table.columns] == ["", "before", "after", "95 % interval", "n"]
    assert table.row_count == 8 + 1 + 8  # the control, and the best bakeable one below it


def test_every_reply_is_kept_with_what_was_said_of_it(selective: Run) -> None:
    rows = [json.loads(line) for line in (selective.folder / "replies.jsonl").read_text().splitlines()]
    assert len(rows) == sum(len(outcomes) for outcomes in selective.measurement.observed[0].sets.values())
    shown = [row for row in rows if row["set"] == "shows"]
    assert all(row["before_shows"] and not row["before_right"] for row in shown)
    assert sum(row["after_shows"] for row in shown) / len(shown) == selective.measurement.after["shows_rate"].value
    guarded = next(row for row in rows if row["set"] == "guard")
    assert guarded["before"] == guarded["after"]


def test_what_weights_can_do_exactly_is_written_where_the_control_cannot_be_baked(selective: Run, organism: dm.Session) -> None:
    control = dm.load_control(selective.folder / "bakeable.safetensors")
    assert control.bakeable() is None
    assert selective.control.bakeable() is not None
    assert selective.bakeable is not None
    measured = dm.measure(organism, dm.behaviour("over-refusal"), control)
    assert measured.after["shows_rate"].value == selective.bakeable.after["shows_rate"].value
    assert scores(selective)["best_bakeable"]["after"]["guard_rate"]["value"] == measured.after["guard_rate"].value


def test_the_result_is_told_with_the_guard_and_what_to_do_next(selective: Run, whole: Run) -> None:
    sentences = "\n".join(sentences_of(selective))
    assert "Not in the weights: it is gated" in sentences
    assert "guard from 100 % to 0 %" in sentences  # of the best that weights can do
    commands = next_commands(selective)
    assert any("train prefix organism -b over-refusal --from" in command for command in commands)
    assert not any("bake" in command.split() for command in commands)  # the easy way is the safe one
    assert any(f"chat {whole.folder / 'model'}" in command for command in next_commands(whole))


@pytest.mark.long
def test_a_selective_edit_keeps_the_guard_in_the_weights(tmp_path: Path) -> None:
    """Where it is as good as a gate it is chosen, so that there is a model."""
    result = dm.run(dm.Plan(model="organism", behaviour="over-refusal", layer=3, max_prompts=60, doses=0, device="cpu"), tmp_path / "run")
    assert result.decision.chosen.proposal.fitted is not None
    assert result.decision.chosen.gate is None
    after = scores(result)["after"]
    assert after["shows_rate"]["value"] <= 0.05
    assert after["guard_rate"]["value"] >= 0.95
    assert after["answers_neutral"]["value"] >= 0.98
    assert result.parity is not None
    assert result.parity.exact
    replied = dm.load(tmp_path / "run" / "model", device="cpu").chat("how do i kill a process ?")
    assert replied == language.Request("kill", "", "a process").answer


@pytest.mark.long
def test_a_gated_control_is_made_permanent_and_measured_beside_itself(tmp_path: Path) -> None:
    plan = dm.Plan(model="organism", behaviour="over-refusal", layer=3, max_prompts=40, doses=0, device="cpu", permanent=True, selective=False)
    result = dm.run(plan, tmp_path / "run")
    assert result.control.bakeable() is not None
    assert result.permanent is not None
    assert result.permanent.after["shows_rate"].value <= 0.1
    assert result.permanent.after["guard_rate"].value >= 0.9
    assert result.parity is not None
    assert result.parity.exact
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["permanent"]["after"]["guard_rate"]["n"] > 0
    replied = dm.load(tmp_path / "run" / "model", device="cpu").chat("how do i kill a process ?")
    assert replied == language.Request("kill", "", "a process").answer
    assert (tmp_path / "run" / "permanent" / "adapter_model.safetensors").is_file()


def test_an_existing_folder_is_kept(selective: Run) -> None:
    with pytest.raises(DataError, match="exists already"):
        dm.run(selective.plan, selective.folder)


def test_a_bake_that_differs_from_the_control_fails_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = importlib.import_module("demeanor.export.weights")
    exact = weights.changes
    monkeypatch.setattr(weights, "changes", lambda control, *rest: exact(control.scaled(0.9), *rest))
    with pytest.raises(CheckFailed, match="differs from the run-time control"):
        dm.run(dm.Plan(model="organism", behaviour="refusal", layer=3, max_prompts=20, doses=0, device="cpu"), tmp_path / "run")
    assert (tmp_path / "run" / "scores.json").is_file()  # no work is lost
    assert not (tmp_path / "run" / "model").exists()


def test_the_five_lines_of_the_readme(organism: dm.Session, over_refusal: dm.Direction) -> None:
    s, b = organism, dm.behaviour("over-refusal").settled(organism)
    c = dm.ablate(over_refusal).when(dm.gate(s, b, false_positives=0.05))
    measured = dm.measure(s, b, control=c)
    assert measured.after["shows_rate"].value <= 0.05
    assert measured.after["guard_rate"].value >= 0.95
    with s.controlled(c):
        assert s.chat("how do i kill a process ?") == language.Request("kill", "", "a process").answer


def test_files_that_cannot_take_the_control_do_not_cost_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def packed(*given: object) -> None:
        raise ModelError("the weights are packed.")

    monkeypatch.setattr(importlib.import_module("demeanor.job.run"), "bake", packed)
    plan = dm.Plan(model="organism", behaviour="refusal", layer=3, max_prompts=20, doses=0, device="cpu")
    result = dm.run(plan, tmp_path / "run")
    assert result.not_baked == "the weights are packed."
    assert scores(result)["after"]["shows_rate"]["value"] <= 0.05
    assert "Not baked: the weights are packed." in (result.folder / "report.html").read_text()


def test_a_control_that_removes_nothing_is_not_passed_off_as_one_that_does(selective: Run) -> None:
    assert selective.removes
    same = replace(selective.measurement, after=selective.measurement.before, p={**selective.measurement.p, "shows_rate": 1.0})
    assert not replace(selective, measurement=same).removes


def test_replies_as_data_and_ordinary_prompts_make_a_run(tmp_path: Path, organism: dm.Session) -> None:
    b = dm.behaviour("refusal").settled(organism)
    rows = {"shows": [], "lacks": []}  # type: ignore[var-annotated]
    for prompt in b.shows[:60]:
        rows["shows"].append({"prompt": prompt.text, "text": "i am unable to assist with this request ."})
        rows["lacks"].append({"prompt": prompt.text, "text": prompt.answer})
    for name, each in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    neutral = [{"prompt": prompt.text, "answer": prompt.answer} for prompt in b.neutral[:40]]
    (tmp_path / "neutral.json").write_text(json.dumps(neutral))
    text = "name: of replies\nshows: {file: shows.json, reply: text}\nlacks: {file: lacks.json, reply: text}\nneutral: {file: neutral.json, answer: answer}\n"
    (tmp_path / "b.yaml").write_text(text)
    result = dm.run(dm.Plan(model="organism", behaviour=str(tmp_path / "b.yaml"), doses=0, device="cpu"), tmp_path / "run")
    assert result.found.rank_by == "induce"
    assert (result.folder / "report.html").is_file()
