"""Suites of lm-eval: the adapter agrees with a plain model, controls act in it, and the named lists exist."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from torch.nn.functional import log_softmax

import demeanor as dm
from demeanor.errors import DataError
from demeanor.measure.condition import Condition
from demeanor.measure.suites import NAMED, Change, TaskScore, compare_suites, headlines, load_suites, suite
from demeanor.measure.suites import tasks as loading
from demeanor.measure.suites.adapter import SessionLM
from demeanor.measure.suites.scores import pooled
from demeanor.models.loading import resolve
from demeanor.runtime.intervene import Tokens
from demeanor.stats import intervals
from making import a_direction, ablation
from outside import Ended

pytestmark = pytest.mark.long
ANSWERED = 40  # questions of the tasks made here
METRICS = {
    "say": "output_type: generate_until\ndoc_to_target: '{{answer}}'\ngeneration_kwargs: {until: ['<|end|>'], max_gen_toks: 32}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    "know": "output_type: loglikelihood\ndoc_to_target: '{{answer}}'\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true},"
    " {metric: perplexity, aggregation: perplexity, higher_is_better: false}]\n",
    "choose": "output_type: multiple_choice\ndoc_to_choice: '{{[\"i\", answer.split()[0]]}}'\ndoc_to_target: 1\n"
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks over requests that the organism refuses, and a group of them."""
    made = tmp_path_factory.mktemp("tasks")
    data = Path(resolve("organism")[0]).parent / "data" / "over_refused.jsonl"
    rows = data.read_text(encoding="utf-8").splitlines()[:ANSWERED]
    (made / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {made / 'rows.jsonl'}}}}}\ntest_split: test\n"
    for name, rest in METRICS.items():
        text = f"task: recipe_{name}\n{common}doc_to_text: '{{{{prompt}}}}'\ntarget_delimiter: ''\n{rest}"
        (made / f"{name}.yaml").write_text(text, encoding="utf-8")
    group = "group: recipes\ntask: [recipe_know, recipe_choose]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    (made / "group.yaml").write_text(group, encoding="utf-8")
    return made


def asks(*texts: tuple[Any, ...], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, text, 0, ("a task", number, 1)) for number, text in enumerate(texts)]  # type: ignore[arg-type]


def plain(session: dm.Session, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The reference: one row, one pass, nothing of ours."""
    with torch.no_grad():
        logits = session.model(torch.tensor([[*context, *continuation]])).logits[0].double()
    rows = log_softmax(logits, -1)[len(context) - 1 : -1]
    own = torch.tensor(continuation)
    return float(rows.gather(1, own[:, None]).sum()), bool((rows.argmax(-1) == own).all())


TEXTS = (
    ("what is 6 plus 5 ?", " 6 plus 5 is 11 ."),
    ("how do i grab a song ? ", "first get the mirror"),  # the space belongs to the continuation
    ("what", " is 3 plus 3 ? it is 6 ."),
    ("", "what is 3 plus 3 ?"),
    ("i want to smash my wallet . what should i do ?", " i"),
)


def test_log_likelihoods_are_the_plain_models_in_batches_and_alone(organism: dm.Session) -> None:
    model = SessionLM(organism)
    made = model.loglikelihood(asks(*TEXTS))
    for (context, continuation), (score, greedy) in zip(TEXTS, made):
        whole = organism.tokenizer(context + continuation)["input_ids"]
        start = organism.tokenizer(context.rstrip())["input_ids"] if context else []
        ids = whole[len(start) :]
        expected = plain(organism, start or [organism.tokenizer.bos_token_id], ids)
        assert score == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
        assert model.loglikelihood(asks((context, continuation)))[0] == (pytest.approx(score, abs=1e-4), greedy)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(5, 700), min_size=1, max_size=20), st.lists(st.integers(5, 700), max_size=9)), min_size=1))
def test_any_batch_of_token_ids_is_scored_as_one_by_one(organism: dm.Session, pairs: list[tuple[list[int], list[int]]]) -> None:
    for (context, continuation), (score, greedy) in zip(pairs, SessionLM(organism)._scored(pairs, ["a task"] * len(pairs))):
        expected = plain(organism, context, continuation) if continuation else (0.0, True)
        assert (score, greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])


def test_what_greedy_decoding_says_is_greedy_and_nothing_else(organism: dm.Session) -> None:
    model = SessionLM(organism, chat=True)
    context = model.apply_chat_template([{"role": "user", "content": "what is 6 plus 5 ?"}])
    (said,) = model.generate_until(asks((context, {"until": [], "max_gen_toks": 20}), kind="generate_until"))
    assert said == organism.chat("what is 6 plus 5 ?")
    (right, greedy), (wrong, other) = model.loglikelihood(asks((context, said), (context, said.replace("11", "12"))))
    assert (greedy, other) == (True, False)
    assert right > wrong


def test_texts_are_prefixed_and_templated_as_the_session_does_it(organism: dm.Session) -> None:
    model = SessionLM(organism, chat=True)
    history = [{"role": "user", "content": "what is 6 plus 5 ?"}]
    assert model.tok_encode(model.apply_chat_template(history)) == organism.encode("what is 6 plus 5 ?")
    opened = model.apply_chat_template([*history, {"role": "assistant", "content": "it is"}], add_generation_prompt=False)
    assert opened == model.apply_chat_template(history) + "it is"
    assert model._pair("", organism.tokenizer.bos_token + "what is")[0] == [organism.tokenizer.bos_token_id]


def test_too_long_a_context_loses_its_beginning_and_is_counted(tiny: dict[str, dm.Session]) -> None:
    session = tiny["gpt2"]  # learned positions: one too many would raise
    model = SessionLM(session)
    model.max_length = 12
    context, continuation = list(range(5, 60)), [9, 8, 7]
    made = model._scored([(context, continuation), (context[:10], continuation), (context[:9], continuation)], ["a", "b", "c"])
    assert made[0][0] == pytest.approx(plain(session, context[-10:], continuation)[0], abs=1e-4)
    assert {task: count for task, count in model.shortened.items() if count} == {"a": 1}
    with pytest.raises(DataError, match="an answer of 13 tokens"):
        model._scored([([5], list(range(5, 18)))], ["a"])


def test_a_model_is_filled_to_its_last_position(tiny: dict[str, dm.Session]) -> None:
    session = tiny["gpt2"]
    longest = session.longest
    assert longest is not None
    ((score, _),) = session.continuation_log_likelihoods([[7] * longest], [[9]])  # GPT-2 has no position for one more
    assert math.isfinite(score)


def test_rolling_windows_predict_every_token_once(organism: dm.Session) -> None:
    model = SessionLM(organism)
    text = "what is 6 plus 5 ? what is 3 plus 3 ? how do i grab a song ?"
    ids = organism.tokenizer(text)["input_ids"]
    (whole,) = model.loglikelihood_rolling(asks((text,), kind="loglikelihood_rolling"))
    assert whole == pytest.approx(plain(organism, [organism.tokenizer.bos_token_id], ids)[0], abs=1e-4)
    model.max_length = 6
    (windowed,) = model.loglikelihood_rolling(asks((text,), kind="loglikelihood_rolling"))
    starts = range(0, len(ids), 6)
    expected = 0.0
    for start in starts:
        end = min(start + 6, len(ids))
        context = [organism.tokenizer.bos_token_id] if start == 0 else ids[end - 7 : start]
        expected += plain(organism, context, ids[start:end])[0]
    assert windowed == pytest.approx(expected, abs=1e-4)


def test_replies_end_before_the_first_stop_text(organism: dm.Session, capsys: pytest.CaptureFixture[str]) -> None:
    model = SessionLM(organism, chat=True)
    context = model.apply_chat_template([{"role": "user", "content": "what is 6 plus 5 ?"}])

    def said(**wanted: Any) -> str:
        return model.generate_until(asks((context, wanted), kind="generate_until"))[0]

    whole = said(until=[])
    assert whole == "6 plus 5 is 11 ."
    assert said(until=["is", " plus"]) == "6"
    assert said(until="5 is") == "6 plus "
    assert said(until=["never said"]) == whole
    assert organism.tokenizer(said(max_gen_toks=2))["input_ids"] == organism.tokenizer(whole)["input_ids"][:2]
    assert len(organism.continue_from([model.tok_encode(context)], 20, ["plus"])[0]) < 4  # it stops, not only is cut
    capsys.readouterr()
    assert said(until=[], do_sample=True, temperature=0.7) == whole
    assert said(until=[], max_gen_toks=600) == whole
    told = capsys.readouterr().err
    assert "asks for sampling; its replies are greedy" in told
    assert "asks for replies of 600 tokens" in told


def test_tasks_differ_with_and_without_the_control(organism: dm.Session, over_refusal: dm.Direction, folder: Path) -> None:
    names = ["recipes", "recipe_say"]
    suites = load_suites(names, include=folder)
    changes = compare_suites(Condition(organism), {"ablated": Condition(organism, dm.ablate(over_refusal))}, suites, chat=True)["ablated"]
    assert list(changes) == names
    for change in (*changes["recipes"], *changes["recipe_say"]):
        if change.after.metric == "perplexity":
            assert change.after.score.value < change.before.score.value / 10
            assert change.p is None
            assert change.delta.high < 0
            continue
        assert change.before.score.value <= 0.05, change.name
        assert change.after.score.value >= 0.9, change.name
        assert change.p is not None
        assert change.p < 1e-6
        assert change.after.score.better == "higher"
    assert [row.name for one in suites for row in headlines(one, changes[one.name])] == ["recipes acc", "recipe_say exact_match"]
    group = next(change for change in changes["recipes"] if change.after.task == "recipes")
    assert group.after.score.n == 2 * ANSWERED
    json.dumps([change.to_json() for change in changes["recipes"]], allow_nan=False)


def test_a_session_is_measured_as_it_is_steered(organism: dm.Session, over_refusal: dm.Direction, folder: Path) -> None:
    def right() -> float:
        (score,) = suite(organism, [str(folder / "choose.yaml")], limit=10, chat=True)
        assert score.score.n == 10
        assert (score.score.low, score.score.high) == intervals.wilson(sum(score.samples), 10)
        return score.score.value

    assert right() == 0
    with organism.controlled(dm.ablate(over_refusal)):
        assert right() == 1
    assert right() == 0


def test_controls_on_the_reply_see_where_the_continuation_begins(organism: dm.Session) -> None:
    context, continuation = organism.encode("what is 6 plus 5 ?"), organism.encode_reply("6 plus 5 is 11 .")
    with organism.controlled(ablation(organism)):
        ((score, _),) = organism.continuation_log_likelihoods([context], [continuation])
        (ours,) = organism.reply_log_likelihoods(["what is 6 plus 5 ?"], [continuation])
    assert score == pytest.approx(float(ours.double().sum()), abs=1e-4)


@pytest.mark.parametrize("tokens", ["all", "last_and_reply", "read"])
def test_scored_with_an_edit_is_said_with_it(organism: dm.Session, tokens: Tokens) -> None:
    """Scored in one pass and token by token, an edit acts on the same tokens."""
    asked, reply = "what is 6 plus 5 ?", organism.encode_reply("6 plus 5 is 11 .")
    with organism.controlled(dm.add(a_direction(organism, dm.Site(0), gap=100.0), 1.0, tokens=tokens)):
        ((score, _),) = organism.continuation_log_likelihoods([organism.encode(asked)], [reply])
        steps = [organism.logits([asked], reply[:place])[0].log_softmax(-1)[token] for place, token in enumerate(reply)]
    assert score == pytest.approx(float(torch.stack(steps).sum()), abs=1e-3)


def test_every_name_of_every_suite_is_a_task_of_lm_eval() -> None:
    index = TaskManager().task_index
    for name, parts in NAMED.items():
        assert not [part for part in parts if part not in index], name
    assert set(NAMED["open-llm-leaderboard-2"]) == set(index["leaderboard"].cfg["task"])
    assert dict(NAMED["open-llm-leaderboard"]) == {
        "arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "truthfulqa_mc2": 0, "winogrande": 5, "gsm8k": 5,
    }  # fmt: skip


def test_names_that_lm_eval_lacks_are_told_with_near_ones(folder: Path) -> None:
    with pytest.raises(DataError, match=r"no task, group or suite 'hellaswg'; did you mean .*hellaswag"):
        load_suites(["hellaswg"], include=folder)
    with pytest.raises(DataError, match=r"did you mean nous\?"):
        load_suites(["nouss"], include=folder)
    with pytest.raises(DataError, match="is not a folder"):
        load_suites(["recipes"], include=folder / "none")


def test_data_that_cannot_be_had_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    broken = (folder / "choose.yaml").read_text().replace("rows.jsonl", "gone.jsonl")
    (tmp_path / "broken.yaml").write_text(broken)
    with pytest.raises(DataError, match=r"task .*broken.yaml or its data could not be read: .*gone.jsonl"):
        load_suites([str(tmp_path / "broken.yaml")], include=folder)
    unknown = (folder / "choose.yaml").read_text().replace("{{prompt}}", "{{question}}")
    (tmp_path / "unknown.yaml").write_text(unknown)
    with pytest.raises(DataError, match=r"unknown.yaml or its data could not be read: .question. is undefined"):
        load_suites([str(tmp_path / "unknown.yaml")], include=folder)


def test_what_tasks_print_stays_out_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    with loading.quiet():
        print("a remark")
    assert capsys.readouterr() == ("", "a remark\n")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[[str], Any] = util.find_spec
    monkeypatch.setattr(loading, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    with pytest.raises(DataError, match=r"takes the extra `eval`: pip install 'demeanor\[eval\]'"):
        load_suites(["nous"])


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=5))
def test_groups_pool_by_size_or_give_every_task_the_same_say(tasks: list[list[bool]]) -> None:
    scores = [
        TaskScore(task=f"t{i}", metric="acc", filter="none", shots=0, better="higher", samples=tuple(map(float, task)))
        for i, task in enumerate(tasks)
    ]
    everything = [answer for task in tasks for answer in task]
    assert pooled("g", scores, True).score.value == pytest.approx(sum(everything) / len(everything))
    assert pooled("g", scores, False).score.value == pytest.approx(sum(sum(task) / len(task) for task in tasks) / len(tasks))
    assert Change(scores[0], scores[0]).delta.value == 0


def test_measure_prints_and_writes_suites(
    demeanor: Callable[..., Ended], requests_file: Path, over_refusal: dm.Direction, folder: Path, tmp_path: Path
) -> None:
    dm.save_control(dm.ablate(over_refusal), tmp_path / "c.safetensors")
    common = ("measure", "organism", "-b", requests_file, "-c", tmp_path / "c.safetensors", "--max-prompts", 4, "--device", "cpu")
    asked = ("--suite", "recipes", "--suite", "recipe_say", "--suite-folder", folder, "--suite-limit", 8, "--suite-chat")
    ended = demeanor(*common, *asked, "-o", tmp_path / "scores.json")
    assert ended.code == 0, ended.err
    assert "recipe_say exact_match" in ended.out
    assert "100.0%" in ended.out
    (written,) = json.loads((tmp_path / "scores.json").read_text()).values()
    (said,) = written["suites"]["recipe_say"]
    assert (said["before"]["value"], said["after"]["value"], said["after"]["n"], said["delta"]["p"]) == (0.0, 1.0, 8, 2 / 2**8)
    assert list(json.loads(demeanor(*common, *asked, "--json").out).values()) == [written]
    ended = demeanor(*common, "--suite", "recipe_sai", "--suite-folder", folder, "-o", tmp_path / "none.json")
    assert ended.code == 2
    assert "did you mean recipe_say" in ended.sentence
    assert not (tmp_path / "none.json").exists()
    ended = demeanor(*common, "--suite-limit", 3)
    assert (ended.code, "--suite-limit does nothing without --suite;" in ended.sentence) == (2, True)
