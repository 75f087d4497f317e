"""Drift on plain prose: what is compared, and that it is the mean KL over it."""

from __future__ import annotations

import logging
import re

import pytest
import torch

import demeanor as dm
from demeanor.measure import Ledger
from demeanor.measure.condition import Condition
from demeanor.measure.text_drift import COMPARED, OPENING, paragraphs, readable, text_drift, text_drift_of
from making import a_direction


def test_the_prose_is_sixty_paragraphs_of_like_length_and_each_its_own() -> None:
    lengths = [len(text.split()) for text in paragraphs()]
    assert len(lengths) == 60
    assert min(lengths) >= 60
    assert max(lengths) <= 120
    sentences = [sentence for text in paragraphs() for sentence in re.split(r"(?<=[.!?]) ", text)]
    assert len(set(sentences)) == len(sentences)


def test_a_model_without_words_for_prose_is_not_told_and_said(organism: dm.Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="demeanor")
    assert readable(organism) == []
    assert "no words for plain prose" in caplog.text
    assert text_drift(organism, None).n == 0


@pytest.mark.slow
def test_it_is_the_mean_token_kl_after_the_opening(organism: dm.Session) -> None:
    control = dm.add(a_direction(organism, dm.Site(2), gap=60.0), 1.0)
    whole = [organism.encode_opened(text)[: OPENING + COMPARED] for text in paragraphs()[:5]]
    whole[1] = whole[1][:40]  # texts need not be equally long
    total = tokens = 0.0
    for ids in whole:  # one at a time, without batches or padding
        with torch.no_grad():
            p = organism.model(torch.tensor([ids])).logits[0, OPENING - 1 : -1].double().log_softmax(-1)
            with organism.controlled(control):
                (q,) = organism.text_log_probs([ids[:OPENING]], [ids[OPENING:]])
        total += float((p.exp() * (p - q.double())).sum())
        tokens += len(ids) - OPENING
    score = text_drift_of(Ledger(organism), Condition(organism, control), [(ids[:OPENING], ids[OPENING:]) for ids in whole])
    assert score.value == pytest.approx(total / tokens, rel=1e-3)
    assert score.low < score.value < score.high
    assert score.n == 5
    assert score.value > 0.001


def test_nothing_moves_without_a_control_or_where_only_system_prompts_are_opened(organism: dm.Session) -> None:
    ids = organism.encode_opened(paragraphs()[0])
    texts = [(ids[:OPENING], ids[OPENING:60])]
    for condition in (Condition(organism), Condition(organism, None, "you are calm .")):
        assert text_drift_of(Ledger(organism), condition, texts).value == 0
