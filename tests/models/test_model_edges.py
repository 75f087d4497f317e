# mypy: ignore-errors
"""Models at their edges: what a small mistake in the hooks, the proof or the tokens would change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import nn

import demeanor as dm
from demeanor.controls import Gate
from demeanor.errors import AccountingError
from demeanor.runtime.batches import TOKEN_BUDGET, in_batches
from demeanor.runtime.intervene import at_writers
from demeanor.structure.proof import prove
from demeanor.structure.writers import weights_behind
from families import save_tiny, tiny_model
from making import PROMPTS, a_direction, ablation, gate_on_length

FIRES = [True, False, True, False]


def outputs(session, name):
    seen = []
    handle = session.model.get_submodule(name).register_forward_hook(
        lambda m, a, o: seen.append((o[0] if isinstance(o, tuple) else o).clone())
    )
    session.logits(PROMPTS)
    handle.remove()
    return seen[0]


def test_an_ablation_leaves_pads_alone(session):
    name = session.layout.writers[0].module
    plain = outputs(session, name)
    with session.controlled(ablation(session)):
        edited = outputs(session, name)  # hooked after the control: what it made of the output
    for row, length in enumerate(sorted((len(session.encode(p)) for p in PROMPTS), reverse=True)):
        pads = plain.shape[1] - length
        assert torch.equal(edited[row, :pads], plain[row, :pads])
        assert not torch.allclose(edited[row, pads:], plain[row, pads:])


def test_a_gate_is_decided_at_the_prompts_end_under_teacher_forcing(organism):
    control = ablation(organism, rank=30)
    gated = control.when(gate_on_length(organism, PROMPTS, FIRES))
    replies = [r.ids for r in organism.generate(PROMPTS, 12)]
    base = organism.reply_log_probs(PROMPTS, replies)
    with organism.controlled(control):
        edited = organism.reply_log_probs(PROMPTS, replies)
    with organism.controlled(gated):
        got = organism.reply_log_probs(PROMPTS, replies)
    for row, fired in enumerate(FIRES):
        assert torch.allclose(got[row], (edited if fired else base)[row], atol=1e-4)


def test_a_gated_add_acts_only_where_it_fires(organism):
    control = dm.add(a_direction(organism, dm.Site(3), gap=30.0), 1.0)
    base = organism.logits(PROMPTS)
    with organism.controlled(control):
        edited = organism.logits(PROMPTS)
    with organism.controlled(control.when(gate_on_length(organism, PROMPTS, FIRES))):
        got = organism.logits(PROMPTS)
    for row, fired in enumerate(FIRES):
        assert torch.allclose(got[row], (edited if fired else base)[row], atol=1e-4)
    assert not torch.allclose(edited, base, atol=1e-2)


def at(session, site, fires):
    from demeanor.algebra.directions import logistic

    values = session.capture(PROMPTS, [site]).at(site)
    w, b = logistic(values, torch.tensor(fires), penalty=1e-3)
    return Gate(site=site, weights=w.float()[None], biases=b.float()[None], auroc=1.0, hits=1.0, false_positives=0.0, against=("guard",))


def test_each_gate_reads_its_own_site(organism):
    one, other = ablation(organism, rank=30, seed=1), ablation(organism, rank=30, seed=2)
    f1, f2 = [True, False, True, False], [False, True, True, False]
    both = one.when(at(organism, dm.Site(0), f1)).then(other.when(at(organism, dm.Site(4), f2)))
    made = {(False, False): organism.logits(PROMPTS)}
    for key, c in (((True, False), one), ((False, True), other), ((True, True), one.then(other))):
        with organism.controlled(c):
            made[key] = organism.logits(PROMPTS)
    with organism.controlled(both):
        got = organism.logits(PROMPTS)
    for row, key in enumerate(zip(f1, f2)):
        assert torch.allclose(got[row], made[key][row], atol=1e-3), row


@pytest.mark.slow
def test_two_gates_may_read_one_site(organism):
    b = dm.behaviour("over-refusal").settled(organism)
    gate = dm.gate(organism, b)
    one, other = ablation(organism, rank=30, seed=1), ablation(organism, rank=30, seed=2)
    P = b.set("shows", "test")[:8] + b.set("guard", "test")[:8]
    with organism.controlled(one.then(other).when(gate)):
        wanted = organism.logits(P)
    with organism.controlled(one.when(gate).then(other.when(replace(gate)))):
        got = organism.logits(P)
    assert torch.allclose(got, wanted, atol=1e-4)


def test_a_site_named_twice_is_read_once(organism):
    v = organism.capture(PROMPTS, [dm.Site(2), dm.Site(2)]).values
    assert torch.equal(v[:, 0], organism.capture(PROMPTS, [dm.Site(2)]).values[:, 0])


@pytest.mark.parametrize("family", ["llama", "gpt_neox_sequential"])
def test_attn_out_is_what_attention_adds(tiny, family):
    session = tiny[family]
    writer = {"llama": ("self_attn.o_proj", "mlp.down_proj"), "gpt_neox_sequential": ("attention.dense", "mlp.dense_4h_to_h")}[family]
    for point, name in zip(("attn_out", "mlp_out"), writer):
        got = session.capture(PROMPTS, [dm.Site(1, point)]).values[:, 0]
        plain = outputs(session, f"{session.layout.blocks[1]}.{name}")[:, -1]
        order = sorted(range(len(PROMPTS)), key=lambda i: -len(session.encode(PROMPTS[i])))
        assert torch.allclose(got[order], plain, atol=1e-6)


def test_multipliers_are_measured_and_used(tiny: dict[str, dm.Session]):
    session = tiny["granite"]
    assert {round(w.scale, 3) for w in session.layout.writers} == {12.0, 0.22}
    at = {p: dm.Site(0, p) for p in ("embed", "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")}
    values = session.capture(PROMPTS, list(at.values()))
    get = {p: values.at(site) for p, site in at.items()}
    assert torch.allclose(get["embed"], get["resid_pre"], rtol=1e-4, atol=1e-5)
    assert torch.allclose(get["resid_mid"], get["resid_pre"] + get["attn_out"], atol=1e-4)
    assert torch.allclose(get["resid_post"], get["resid_mid"] + get["mlp_out"], atol=1e-4)


def test_room_for_replies_counts():
    sizes = []

    def run(batch):
        sizes.append(len(batch.rows))
        return batch.rows

    in_batches([[1] * 100] * 20, 0, torch.device("cpu"), run, "Testing", extra=TOKEN_BUDGET // 4 - 100)
    assert sizes == [4] * 5


def test_positions_count_from_the_first_real_token(tiny: dict[str, dm.Session]):
    session = tiny["gpt2"]  # learned positions: unlike rotary ones they are not relative
    batch = session.logits(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            alone = session.model(torch.tensor([session.encode(prompt)])).logits[0, -1]
        assert torch.allclose(batch[row], alone, atol=3e-5)


class _Wrapped(nn.Module):
    def __init__(self, block, change):
        super().__init__()
        self.block, self.change = block, change
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden_states, **kwargs):
        return self.change(hidden_states, self.block(hidden_states, **kwargs))


def wrapped(change):
    model = tiny_model("llama")
    model.model.layers[1] = _Wrapped(model.model.layers[1], change)
    return model


def test_accounting_is_as_exact_as_it_says():
    with pytest.raises(AccountingError, match="scalars account for what it adds only up to"):
        prove(wrapped(lambda x, out: out + 1e-3 * (out - x).tanh()))


class _NormOnStream(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block, self.norm = block, nn.LayerNorm(48)
        self.attention_type = getattr(block, "attention_type", None)

    def forward(self, hidden_states, **kwargs):
        return self.norm(self.block(hidden_states, **kwargs))


def test_a_norm_on_the_stream_is_refused():
    model = tiny_model("llama")
    model.model.layers[1] = _NormOnStream(model.model.layers[1])
    with pytest.raises(AccountingError, match=r"layers\.1"):
        prove(model)


def test_a_gradient_nearly_along_v_is_not_along_v():
    weight = nn.Parameter(torch.randn(48, 5, dtype=torch.float64))
    x = torch.randn(3, 5, dtype=torch.float64)
    nearly = 1 + 1e-4 * torch.linspace(-1, 1, 48, dtype=torch.float64)  # of every channel by itself
    assert [found.axis for found in weights_behind([("w", weight)], x @ weight.T, "b")] == [0]
    assert weights_behind([("w", weight)], (x @ weight.T) * nearly, "b") == []


def test_a_weight_that_could_write_on_two_axes_is_refused():
    w = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))
    v = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with pytest.raises(AccountingError, match=r"could write the stream on axes \[0, 1\]"):
        weights_behind([("w", w)], v.expand(2, 3, 6) @ w, "b")


class _Shifted(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + torch.arange(48) / 48


def test_an_embedding_that_adds_a_constant_is_refused():
    model = tiny_model("llama")
    model.model.embed_tokens.__class__ = _Shifted
    with pytest.raises(AccountingError, match="adds to the stream what lies in no weight"):
        prove(model)


def test_weights_that_are_no_numbers_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(AccountingError, match=r"layers\.1 returns values that are not numbers"):
        prove(model)


class _Nearly(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1e-4 * torch.arange(48).to(x) / 48


def test_a_small_constant_no_weight_explains_is_refused():
    model = tiny_model("llama")
    model.model.layers[2].mlp.down_proj.__class__ = _Nearly
    with pytest.raises(AccountingError, match="not all of its weights"):
        prove(model)


def test_an_edit_that_misses_a_writer_fails_the_last_check(tiny_folders, monkeypatch):
    monkeypatch.setattr("demeanor.models.proven.at_writers", lambda *a: at_writers(*a)[:-1])
    with pytest.raises(AccountingError, match="is left in the stream"):
        dm.load(tiny_folders["llama"], device="cpu", prove=True)


@pytest.fixture
def begins(tiny_folders):
    """A session whose tokenizer writes a begin token of its own, as Llama's does."""

    def make(template=True):
        s = dm.load(tiny_folders["llama"], device="cpu")
        token = s.tokenizer.bos_token
        s.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, s.tokenizer.bos_token_id)]
        )
        if not template:
            s.tokenizer.chat_template = None
        return s

    return make


def test_the_template_writes_the_only_begin_token_also_where_the_tokenizer_has_one(begins):
    s = begins()
    assert s.encode("how do i crack an egg ?").count(s.tokenizer.bos_token_id) == 1


def test_plain_text_gets_the_tokenizers_begin_token(begins):
    s = begins(template=False)
    ids = s.encode("how do i crack an egg ?")
    assert ids[0] == s.tokenizer.bos_token_id
    assert ids.count(s.tokenizer.bos_token_id) == 1


def test_replies_have_no_begin_token(begins):
    s = begins()
    assert s.tokenizer.bos_token_id not in s.encode_reply("first get the lamp .")


def test_scoring_replies_leaves_generation_as_it_was(organism):
    control = dm.add(a_direction(organism, dm.Site(3), gap=30.0), 1.0)
    with organism.controlled(control):
        wanted = [r.ids for r in organism.generate(PROMPTS, 12)]
    with organism.controlled(control):
        organism.reply_log_probs(PROMPTS, [[7] * 3] * 4)
        assert [r.ids for r in organism.generate(PROMPTS, 12)] == wanted


def test_forced_words_count_as_reply(organism):
    after = organism.encode_reply("first get the")
    control = dm.add(a_direction(organism, dm.Site(3), gap=30.0), 1.0)
    with organism.controlled(control):
        got = organism.logits(PROMPTS, after).log_softmax(-1)
        wanted = organism.reply_log_probs(PROMPTS, [[*after, 7]] * 4)
    for row in range(4):
        assert torch.allclose(got[row], wanted[row][-1], atol=1e-4)


def test_other_weights_of_the_same_structure_are_said_once(tiny_folders, tiny, tmp_path, capsys):
    other = dm.load(save_tiny(tmp_path / "other", "llama", seed=1), device="cpu")
    capsys.readouterr()
    with other.controlled(ablation(tiny["llama"])):
        pass
    with other.controlled(ablation(tiny["llama"])):
        pass
    assert capsys.readouterr().err.count("same structure, other weights") == 1


def test_a_system_prompt_is_part_of_plain_text(begins):
    s = begins(template=False)
    assert s.render(dm.Prompt.of("hello", system="be brief .", prefill=" yes")) == "be brief .\nhello yes"


def test_every_end_token_ends_a_reply(begins):
    s = begins()
    s.model.generation_config.eos_token_id = [5, 6]
    assert dm.load(s.model, tokenizer=s.tokenizer).end_ids == {5, 6, s.tokenizer.eos_token_id}


def test_a_tokenizer_of_another_model_is_named(tmp_path):
    from demeanor.errors import ModelError

    folder = save_tiny(tmp_path / "m", "llama")
    s = dm.load(folder, device="cpu")
    s.tokenizer.add_tokens(["zzzz"])
    with pytest.raises(ModelError, match="do not belong together"):
        s.encode("zzzz")
