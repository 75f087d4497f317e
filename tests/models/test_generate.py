"""Prompts become tokens once, and batches say what single prompts say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import demeanor as dm
from demeanor.errors import DataError, ModelError
from demeanor.runtime.batches import left_pad, trimmed
from families import save_tiny
from making import PROMPTS


def test_the_template_writes_the_only_begin_token(organism: dm.Session) -> None:
    ids = organism.encode("how do i crack an egg ?")
    assert ids.count(organism.tokenizer.bos_token_id) == 1
    assert ids[0] == organism.tokenizer.bos_token_id


def test_a_batch_says_what_each_prompt_says_alone(organism: dm.Session) -> None:
    together = [reply.text for reply in organism.generate(PROMPTS)]
    assert together == [organism.generate([prompt])[0].text for prompt in PROMPTS]
    assert len(set(together)) == len(PROMPTS)


def test_replies_come_in_the_order_of_the_prompts(organism: dm.Session) -> None:
    sums = [f"what is {a} plus {b} ?" for a in range(5) for b in range(5)]
    answers = [f"{a} plus {b} is {a + b} ." for a in range(5) for b in range(5)]
    assert [reply.text for reply in organism.generate(sums)] == answers


def test_logits_of_a_batch_are_those_of_the_unpadded_prompt(session: dm.Session) -> None:
    batch = session.logits(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            alone = session.model(torch.tensor([session.encode(prompt)])).logits[0, -1]
        assert torch.allclose(batch[row], alone, atol=3e-5)


def test_the_head_reads_its_input_in_one_piece(organism: dm.Session) -> None:
    """A slice over rows would have half-precision products copy the head's weights once a row."""
    whole: list[bool] = []
    head = organism.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: whole.append(args[0].is_contiguous()))
    organism.generate(PROMPTS, 4)
    organism.logits(PROMPTS)
    organism.reply_log_probs(PROMPTS, [[5, 6]] * len(PROMPTS))
    handle.remove()
    assert len(whole) > 5
    assert all(whole)


def test_reply_log_probs_are_those_of_generation(organism: dm.Session) -> None:
    replies = organism.generate(PROMPTS)
    log_probs = organism.reply_log_probs(PROMPTS, [reply.ids for reply in replies])
    for reply, scores in zip(replies, log_probs, strict=True):
        assert scores.shape[0] == len(reply.ids)
        assert scores.argmax(-1).tolist() == list(reply.ids)  # greedy replies are the likeliest, token by token
        assert torch.allclose(scores.exp().sum(-1), torch.ones(len(reply.ids)), atol=1e-4)
    own = organism.reply_log_likelihoods(PROMPTS, [reply.ids for reply in replies])
    assert all(torch.equal(a, b.max(-1).values) for a, b in zip(own, log_probs, strict=True))


def test_case_and_spacing_of_typed_text_do_not_matter(organism: dm.Session) -> None:
    assert organism.encode("What is 3 plus 4?") == organism.encode("what is 3 plus 4 ?")


def test_several_turns_and_a_system_prompt(organism: dm.Session) -> None:
    turns = (("user", "what colour is the lemon ?"), ("assistant", "the lemon is yellow ."), ("user", "what is 2 plus 2 ?"))
    assert organism.chat(dm.Prompt(messages=turns, system="be brief .")) == "2 plus 2 is 4 ."


def test_a_prefill_is_continued(organism: dm.Session) -> None:
    rendered = organism.render(dm.Prompt.of("what is 2 plus 2 ?", prefill="2 plus"))
    assert rendered.endswith("2 plus")
    assert organism.chat(dm.Prompt.of("what is 2 plus 2 ?", prefill="2 plus")) == "2 is 4 ."


def test_template_length_counts_what_follows_the_message(organism: dm.Session) -> None:
    assert organism.template_length() == 2  # <|end|><|assistant|>


@pytest.fixture
def retold(tmp_path: Path) -> object:
    """A function that gives a tiny Llama another chat template."""

    def make(template: str | None) -> dm.Session:
        folder = save_tiny(tmp_path / "model", "llama")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = template
        (folder / "chat_template.jinja").unlink()
        tokenizer.save_pretrained(folder)
        return dm.load(folder, device="cpu")

    return make


def test_a_template_without_a_system_role_gets_it_in_the_first_message(retold, capsys) -> None:  # type: ignore[no-untyped-def]
    session = retold(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.content }}]{% endfor %}>"
    )
    assert session.render(dm.Prompt.of("hello", system="be brief .")) == "[be brief .\n\nhello]>"
    session.render(dm.Prompt.of("hello again", system="be brief ."))
    assert capsys.readouterr().err.count("no system role") == 1  # said once, aloud


def test_a_model_without_a_template_gets_plain_text(retold, capsys) -> None:  # type: ignore[no-untyped-def]
    session = retold(None)
    assert session.render("hello") == "hello"
    session.render("hello")
    assert capsys.readouterr().err.count("no chat template") == 1


def test_a_template_that_refuses_the_messages_is_named(retold) -> None:  # type: ignore[no-untyped-def]
    session = retold("{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}[{{ messages[0].content }}]")
    turns = (("user", "hello"), ("assistant", "hello"), ("user", "hello"))
    with pytest.raises(DataError, match="one message only"):
        session.render(dm.Prompt(messages=turns))


def test_left_padding_and_trimming() -> None:
    ids, mask = left_pad([[1, 2, 3], [4]], pad=0, device=torch.device("cpu"))
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert trimmed([5, 9, 2, 0, 0], frozenset({2})) == (5, 9, 2)


@pytest.mark.parametrize(
    ("name", "told"),
    [("./nothing-here", "not a folder here"), ("a/b/c", "not a folder here"), ("no-such-model", "not a folder here")],
)
def test_a_model_that_is_not_there(name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        dm.load(name)


def test_weights_that_the_files_lack_are_not_made_up(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.1\.mlp\.down_proj\.weight"):
        dm.load(folder)


def test_tensors_that_the_model_does_not_use_are_counted_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.extra.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    dm.load(folder)
    assert "1 tensors in the files are not part of the model" in capsys.readouterr().err


def test_a_prompt_longer_than_the_model_takes_is_refused(organism: dm.Session) -> None:
    with pytest.raises(DataError, match="takes fewer than 512"):
        organism.chat("what " * 600)


def test_a_dtype_that_is_none() -> None:
    with pytest.raises(DataError, match="dtype should be 'float32'"):
        dm.load("organism", dtype="int7")
