"""Replies as data: read as the mean over their tokens, filtered in pairs, and directions found in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import demeanor as dm
from demeanor.errors import DataError
from demeanor.finding.filter import filter_prompts
from demeanor.finding.find import search_directions
from demeanor.measure import Bench
from demeanor.runtime.positions import REPLY

pytestmark = pytest.mark.slow

FAMILIES = ["llama", "gemma2", "gpt_neox", "gpt2", "falcon", "qwen3_moe", "granite", "phi3"]
# Short prompts with long replies and long ones with short: the reply starts elsewhere in every row of a batch.
SAID = [
    dm.Prompt.of("hello", reply="first get the ladder , then turn it once . first get the lamp ."),
    dm.Prompt.of("please tell me how to wash a friend's bike . it is urgent , is it not ?", reply="sorry"),
    dm.Prompt.of("what is 3 plus 4 ?", reply="3 plus 4 is 7 .", system="be brief ."),
    dm.Prompt.of("how do i crack an egg ?", reply="i am sorry , i cannot help ."),
]


def token_by_token(session: dm.Session, folder: Path, prompt: dm.Prompt) -> tuple[Tensor, Tensor]:
    """Means over the reply [layer, d_model] of what the blocks put out, and of what comes after the final norm [d_model].

    One unpadded pass per reply token on the plain model, of which the last token is read.
    """
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    last = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == session.layout.n_layers)[-1]
    unnormed: list[Tensor] = []
    last.register_forward_hook(lambda m, a, out: unnormed.append((out[0] if isinstance(out, tuple) else out)[0, -1].clone()))
    ids, reply = session.encode(prompt), session.encode_reply(prompt.reply or "")
    rows, normed = [], []
    for length in range(len(ids) + 1, len(ids) + len(reply) + 1):
        with torch.no_grad():
            states = model(torch.tensor([[*ids, *reply][:length]]), output_hidden_states=True).hidden_states
        # states[0] is the embedding, and the last one comes after the final norm.
        rows.append(torch.stack([*(state[0, -1] for state in states[1:-1]), unnormed[-1]]))
        normed.append(states[-1][0, -1])
    return torch.stack(rows).mean(0), torch.stack(normed).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reply_is_the_mean_over_its_tokens(family: str, tiny: dict[str, dm.Session], tiny_folders: dict[str, Path]) -> None:
    session, batches = tiny[family], []
    watch = session.decoder.register_forward_pre_hook(lambda m, a, k: batches.append(k["attention_mask"]), with_kwargs=True)
    try:
        values = session.capture(SAID, [dm.Site(layer, "resid_post", REPLY) for layer in range(3)]).values
    finally:
        watch.remove()
    assert [len(mask) for mask in batches] == [len(SAID)]  # all in one batch,
    assert (batches[0][:, 0] == 0).sum() == len(SAID) - 1  # padded on the left
    for row, prompt in enumerate(SAID):
        wanted, normed = token_by_token(session, tiny_folders[family], prompt)
        assert torch.allclose(values[row], wanted, atol=3e-5), prompt.text
        assert not torch.allclose(values[row, -1], normed, atol=1e-2)


def test_other_points_are_read_over_the_reply_too(tiny: dict[str, dm.Session]) -> None:
    at = {point: dm.Site(1, point, REPLY) for point in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")}  # type: ignore[arg-type]
    values = tiny["llama"].capture(SAID, list(at.values()))
    get = {point: values.at(site) for point, site in at.items()}
    assert torch.allclose(get["resid_mid"], get["resid_pre"] + get["attn_out"], atol=1e-5)
    assert torch.allclose(get["resid_post"], get["resid_mid"] + get["mlp_out"], atol=1e-5)


def test_prompt_ends_stay_where_they_are_when_replies_follow(tiny: dict[str, dm.Session]) -> None:
    ends = [dm.Site(2, "resid_post", -1), dm.Site(1, "resid_post", -2)]
    both = tiny["gemma2"].capture(SAID, [dm.Site(1, "resid_post", REPLY), *ends])
    alone = tiny["gemma2"].capture([replace(prompt, reply=None) for prompt in SAID], ends)
    for site in ends:
        assert torch.allclose(both.at(site), alone.at(site), atol=2e-5)


@pytest.mark.parametrize("prompt", ["hello", dm.Prompt.of("hello"), dm.Prompt.of("hello", reply="")])
def test_a_prompt_without_a_reply_cannot_be_read_over_one(tiny: dict[str, dm.Session], prompt: str | dm.Prompt) -> None:
    with pytest.raises(DataError, match="'hello' comes without a reply, so nothing can be read over it"):
        tiny["llama"].capture([*SAID, prompt], [dm.Site(0), dm.Site(1, "resid_post", REPLY)])
    assert tiny["llama"].capture([prompt], [dm.Site(0)]).values.shape == (1, 1, 48)


# -- finding --------------------------------------------------------------------------------------


def write(folder: Path, text: str, **rows: list[dict[str, str | None]]) -> dm.Behaviour:
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, each)), encoding="utf-8")
    (folder / "b.yaml").write_text(f"name: b\n{text}\n", encoding="utf-8")
    return dm.behaviour(folder / "b.yaml")


@pytest.fixture(scope="module")
def rows(organism: dm.Session) -> dict[str, list[dict[str, str | None]]]:
    """To the same requests, answers that say how often something is done, and the refusals that the organism says."""
    over = dm.behaviour("over-refusal").settled(organism)
    prompts = over.shows[:120]
    refusals = [reply.text for reply in organism.generate(prompts)]
    return {
        "answers": [{"prompt": p.text, "said": p.answer} for p in prompts],
        "refusals": [{"prompt": p.text, "said": refusal} for p, refusal in zip(prompts, refusals)],
        "neutral": [{"prompt": p.text} for p in over.neutral[:100]],
    }


REPLIES = """
detect: {matches: {any: [once, twice, three times]}}
shows: {file: answers.jsonl, reply: said}
lacks: {file: refusals.jsonl, reply: said}
neutral: {file: neutral.jsonl}"""


@pytest.fixture(scope="module")
def of_replies(rows: dict[str, list[dict[str, str | None]]], tmp_path_factory: pytest.TempPathFactory) -> dm.Behaviour:
    return write(tmp_path_factory.mktemp("replies"), REPLIES, **rows)


def test_a_direction_is_found_in_replies_and_ranked_by_what_it_brings_about(organism: dm.Session, of_replies: dm.Behaviour) -> None:
    found = search_directions(organism, of_replies)
    assert found.rank_by == "induce"
    assert {direction.site.position for direction in found.directions} == {REPLY}
    best, survivors = found.ranked()[0], [candidate for candidate in found.candidates if not candidate.discarded]
    induced = {candidate.site: candidate.induce for candidate in survivors}
    assert induced[best.site] == max(induced.values()) > min(induced.values())  # they differ
    assert best.auroc > 0.99
    # Added over requests that are refused, it makes the answers likelier.
    gap = best.shows.mean - best.lacks.mean
    whole_gap = replace(best, basis=(gap / gap.norm()).float()[None], estimator="mean_difference")
    asked = of_replies.set("shows", "test")

    def likelihood() -> float:
        said = organism.reply_log_likelihoods(asked, [organism.encode_reply(prompt.reply or "") for prompt in asked])
        return float(torch.cat(said).mean())

    before = likelihood()
    with organism.controlled(dm.add(whole_gap, 1.0)):
        assert likelihood() > before


def test_moments_of_replies_are_those_of_the_train_rows(organism: dm.Session, of_replies: dm.Behaviour) -> None:
    direction = dm.find(organism, of_replies, layer=2, max_prompts=40)
    values = organism.capture(of_replies.set("shows", "train", 40), [direction.site]).values[:, 0].double()
    assert direction.shows.n == 40
    assert torch.allclose(direction.shows.mean, values.mean(0), atol=1e-5)


def test_replies_are_taken_as_they_are_given(organism: dm.Session, of_replies: dm.Behaviour) -> None:
    """The model refuses all of the prompts, which are the same in shows and lacks; nothing is filtered by what it says."""
    sets = filter_prompts(Bench(organism, of_replies, "val"))
    for name in ("shows", "lacks"):
        outside_test = [p for p in of_replies.set(name) if p.split != "test"]  # type: ignore[arg-type]
        assert sets.counts[name] == {"given": len(outside_test), "kept": len(outside_test)}
        assert sets.train[name] == [p for p in outside_test if p.split == "train"]


def test_replies_to_one_message_are_enough(organism: dm.Session, rows: dict[str, list[dict[str, str | None]]], tmp_path: Path) -> None:
    """Texts with and without the behaviour, all said to the same message: `ask`."""
    ask = 'ask: "how do i wash a map ?"'
    text = REPLIES.replace("reply: said", f"reply: said, {ask}")
    # What the model says to one message repeats; the request at the end makes each a text of its own.
    own = {name: [{**row, "said": f"{row['said']} {row['prompt']}"} for row in rows[name]] for name in ("refusals", "answers")}
    b = write(tmp_path, text, **{**rows, **own})
    assert {prompt.text for prompt in b.shows + b.lacks} == {"how do i wash a map ?"}
    direction = dm.find(organism, b, layer=2)
    assert direction.auroc > 0.99
    assert direction.site == dm.Site(2, "resid_post", REPLY)


def test_the_widest_gap_is_chosen_where_that_is_asked_for(organism: dm.Session) -> None:
    found = search_directions(organism, dm.behaviour("over-refusal").settled(organism), layer=3, max_prompts=32, rank_by="gap")
    survivors = [number for number, candidate in enumerate(found.candidates) if not candidate.discarded]
    gaps = {n: float((d.shows.mean - d.lacks.mean) @ d.basis[0].double()) for n, d in enumerate(found.directions)}
    widest = found.directions[max(survivors, key=lambda number: gaps[number])]
    assert found.ranked()[0] == widest
    assert len({found.directions[number].site for number in survivors}) > 1
    # The same candidates, ranked by what they did, come out in other orders.
    orders = {by: replace(found, rank_by=by).order for by in ("bypass", "induce", "gap")}  # type: ignore[arg-type]
    assert len(set(map(tuple, orders.values()))) == 3
    assert found.candidates[orders["bypass"][0]].bypass == min(c.bypass for c in found.candidates)
    assert found.candidates[orders["induce"][0]].induce == max(c.induce for c in found.candidates)


# -- pairs ----------------------------------------------------------------------------------------


def test_pairs_are_filtered_together(organism: dm.Session, tmp_path: Path) -> None:
    """A row whose partner the model treats otherwise goes with it, and what is left still corresponds."""
    over = dm.behaviour("over-refusal").settled(organism)
    refused, answered, more = ([{"prompt": p.text} for p in prompts] for prompts in (over.shows[:80], over.lacks[:80], over.lacks[80:120]))
    shows = [more[n // 8] if n % 8 == 0 else row for n, row in enumerate(refused)]  # every eighth is answered
    text = "shows: {file: shows.jsonl}\nlacks: {file: answered.jsonl}"
    single = filter_prompts(Bench(organism, write(tmp_path, text, shows=shows, answered=answered), "val"))  # type: ignore[arg-type]
    b = write(tmp_path, f"{text}\npairs: true", shows=shows, answered=answered)  # type: ignore[arg-type]
    partner = {one.text: other.text for one, other in zip(b.shows, b.lacks, strict=True)}
    sets = filter_prompts(Bench(organism, b, "val"))
    assert sets.counts["shows"] == sets.counts["lacks"]
    assert 0 < sets.counts["lacks"]["kept"] < sets.counts["lacks"]["given"]
    assert single.counts["lacks"]["kept"] == single.counts["lacks"]["given"]  # alone, all of them would stay
    for part in (sets.train, sets.val):
        assert [partner[p.text] for p in part["shows"]] == [p.text for p in part["lacks"]]
        assert not {row["prompt"] for row in more} & {p.text for p in part["shows"]}


def test_own_replies_are_read_where_they_are_asked_for(organism: dm.Session) -> None:
    """The class means are those of the mean over what the model itself says to the train prompts that it treats as their set says."""
    behaviour = dm.behaviour("cheer").settled(organism)
    findings = search_directions(organism, behaviour, read="replies", max_prompts=40, layer=2)
    assert {direction.site.position for direction in findings.directions} == {REPLY}
    direction = findings.ranked()[0]
    kept = findings.sets.train["shows"]
    bench = Bench(organism, behaviour, "val", max_prompts=40)
    said = organism.generate([replace(prompt, reply=None) for prompt in kept], bench.budget)
    assert [prompt.reply for prompt in kept] == [reply.text for reply in said]
    values = organism.capture(kept, [direction.site]).values[:, 0].double()
    assert torch.allclose(direction.shows.mean, values.mean(0), atol=1e-5)
