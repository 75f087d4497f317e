"""The search: for every prompt, what to add to its states for the reply that the model itself judges best.

Per iteration and prompt: one gradient where the search stands, candidates of several sizes and first tokens, all prompts in
one batch; their replies are judged by the uncontrolled model; of those that gain enough and are
fluent, the one that fits its prompt best is accepted. A reply's text comes about under what was accepted, so it is the text that was scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..behaviours import Prompt, Question, as_prompt, as_prompts, as_questions
from ..detect.suffix import Suffix, exchange_scores, suffix
from ..errors import DataError
from ..models import Reply, Session
from ..models.thinking import open_think_tag
from ..progress import track
from .branches import branched
from .gradient import capped, steps, suffix_gradients
from .prompt_gradients import Gradients, opened_with, stream_at_ends, stream_norms
from .settings import LADDER, Settings
from .trace import Step, Trace, Traces, Tried, Verdict

DEFAULT = Settings()
ANYWHERE = -1  # the number of a prompt that says nothing
NOTHING = as_prompt("?")


def search(session: Session, prompts: Sequence[str | Prompt], questions: Sequence[Question], settings: Settings = DEFAULT) -> Traces:
    """Search for states of every prompt that make the model judge its reply as the questions want it.

    Raises DataError where there is nothing to ask or nobody to ask about; ModelError where the model cannot be asked.
    """
    questions = as_questions(questions)
    if not questions:
        raise DataError("There is no question to judge replies by; name one with --question, or give the behaviour `questions`.")
    if not prompts:
        raise DataError("There are no prompts to search states for.")
    asked = as_prompts(prompts)
    suffixes = [suffix(session, question) for question in questions]
    chunks = [asked[start : start + settings.batch_size] for start in range(0, len(asked), settings.batch_size)]
    traces = [trace for chunk in track(chunks, "Searching", len(chunks)) for trace in Search(session, suffixes, settings, chunk).run()]
    made_from = {"questions": [question.model_dump() for question in questions], "settings": settings.model_dump()}
    return Traces(tuple(traces), made_from)


@dataclass(eq=False, kw_only=True)
class Candidate:
    """One thing to try: a step of one size for the prompt in one row of the batch, and the place of its first token."""

    row: int
    eta: float
    branch: int
    ids: tuple[int, ...]
    score: float
    ratio: float | None = None
    log_probability: float | None = None
    pmi: float | None = None
    verdict: Verdict = "no gain"

    @property
    def fit(self) -> float:
        """How well the reply fits its prompt, in nats."""
        return (self.log_probability or 0.0) + min(self.pmi or 0.0, 0.0)


class Search:
    """Prompts that are searched side by side. What is added has the prompts' ends together: [layer, prompt, width, d_model]."""

    def __init__(self, session: Session, suffixes: Sequence[Suffix], settings: Settings, prompts: Sequence[Prompt]) -> None:
        self.session, self.suffixes, self.settings = session, suffixes, settings
        self.most = session.reply_tokens
        self.layers = None if settings.layers == "all" else settings.layers
        self.prompts = list(prompts)
        self.ids = [tuple(session.encode(prompt)) for prompt in prompts]
        self.opened = [open_think_tag(session.render(prompt)) for prompt in prompts]
        self.width = max(map(len, self.ids))
        self.norms = stream_norms(session, self.ids, self.width).to(session.device)
        self.added = torch.zeros(*self.norms.shape, session.layout.d_model, device=session.device)
        self.eta = [settings.eta] * len(self.ids)
        self.seen: list[dict[tuple[int, ...], float]] = [{} for _ in self.ids]  # S of every reply met so far
        self.written: list[dict[tuple[int, ...], bool]] = [{} for _ in self.ids]
        self.likely: list[dict[tuple[int, ...], Tensor]] = [{} for _ in (*self.ids, ANYWHERE)]

    def run(self) -> list[Trace]:
        plain = [self._reply(number, branches[0]) for number, branches in enumerate(branched(self.session, self.ids, most=self.most))]
        scores = self.score([(number, reply.ids) for number, reply in enumerate(plain)])
        self.traces = [
            Trace(prompt=prompt, ids=ids, plain=reply, plain_score=score, reply=reply, score=score, added=self.added[:, number, -len(ids) :], norms=self.norms[:, number, -len(ids) :])
            for number, (prompt, ids, reply, score) in enumerate(zip(self.prompts, self.ids, plain, scores))
        ]  # fmt: skip
        active = [number for number, reply in enumerate(plain) if self._said(reply.ids) and scores[number] < self.settings.goal]
        for _ in range(self.settings.iterations):
            active = self._step(active)
        ends = stream_at_ends(self.session, self.ids, self.added)
        return [
            replace(trace, added=self.added[:, number, -len(trace.ids) :].cpu().clone(), norms=trace.norms.cpu()).through(ends[number])
            for number, trace in enumerate(self.traces)
        ]

    # -- one iteration ----------------------------------------------------------------------------

    def _step(self, active: list[int]) -> list[int]:
        """One step of every active prompt; those that gained and are not there yet."""
        if not active:
            return []
        replies = [self._said(self.traces[number].reply.ids) for number in active]
        given = self.added[:, active]
        gradients = self.gradients([self.ids[number] for number in active], replies, given)
        gradient = gradients.gradient.to(given)
        reach = Reach(
            given, steps(gradient, self.norms[:, active], self.layers, self.settings.top_k), self.norms[:, active], self.settings.cap
        )
        candidates = self._tried(active, reach)
        accepted = self._accepted(active, reach, candidates)
        for row, number in enumerate(active):
            mine = [candidate for candidate in candidates if candidate.row == row]
            taken = accepted.get(row)
            tried = tuple(
                Tried(
                    eta=candidate.eta,
                    branch=candidate.branch,
                    reply=self._reply(number, candidate.ids),
                    score=candidate.score,
                    perplexity_ratio=candidate.ratio,
                    log_probability=candidate.log_probability,
                    pmi=candidate.pmi,
                    verdict=candidate.verdict,
                )
                for candidate in mine
            )
            norms = gradient[:, row, -len(self.ids[number]) :].norm(dim=-1).cpu()
            trace = self.traces[number]
            trace = replace(trace, steps=(*trace.steps, Step(tried, None if taken is None else mine.index(taken), norms)))
            if taken is not None:
                self.eta[number] = taken.eta
                trace = replace(trace.through(gradients.stream[row]), reply=self._reply(number, taken.ids), score=taken.score)
            self.traces[number] = trace
        return [number for row, number in enumerate(active) if row in accepted and accepted[row].score < self.settings.goal]

    def gradients(self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], given: Tensor) -> Gradients:
        return suffix_gradients(self.session, prompts, replies, self.suffixes, given)

    def _tried(self, active: list[int], reach: Reach) -> list[Candidate]:
        """What a step may lead to. Where no reply will do yet, the one that will may open with a token further down the list."""
        candidates = self.candidates(active, list(range(len(active))), reach, self.settings.branches)
        fittest = self._fittest(active, self._gaining(active, candidates))
        unsure = [
            row for row, number in enumerate(active)
            if self.traces[number].reply is self.traces[number].plain and not (row in fittest and self._belongs(number, fittest[row]))
        ]  # fmt: skip
        if not unsure or self.settings.wider == 1:
            return candidates
        more = self.candidates(active, unsure, reach, self.settings.branches * self.settings.wider)
        return [candidate for candidate in candidates if candidate.row not in unsure] + more

    def _belongs(self, number: int, candidate: Candidate) -> bool:
        """Whether a reply has about as much to do with its prompt as the plain one has."""
        plain = self.traces[number].plain.ids
        here, anywhere = self._likelihoods([(number, plain), (ANYWHERE, plain)])
        return (candidate.pmi or 0.0) >= self.settings.topic * float(here.sum() - anywhere.sum())

    def candidates(self, active: list[int], of: list[int], reach: Reach, branches: int) -> list[Candidate]:
        """Replies under every step size, opened in several ways, and what the uncontrolled model says of them; `of` are rows."""
        rows = [row for row in of for _ in LADDER]
        sizes = [rung * self.eta[active[row]] for row in of for rung in LADDER]
        prompts = [self.ids[active[row]] for row in rows]

        def values(which: Sequence[int], layer: int) -> Tensor:
            return reach.at(layer, [rows[place] for place in which], [sizes[place] for place in which])

        replies = branched(self.session, prompts, values, branches, self.most)
        tried = [(row, eta, branch, ids) for row, eta, said in zip(rows, sizes, replies) for branch, ids in enumerate(said)]
        scores = self.score([(active[row], ids) for row, _, _, ids in tried])
        return [Candidate(row=row, eta=eta, branch=branch, ids=ids, score=score) for (row, eta, branch, ids), score in zip(tried, scores)]

    def _gaining(self, active: list[int], candidates: list[Candidate]) -> dict[int, list[Candidate]]:
        """The candidates of each row that say something and gain enough."""
        gaining: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            if not self._said(candidate.ids):
                candidate.verdict = "empty"
            elif not self._as_written(active[candidate.row], candidate.ids):
                candidate.verdict = "not as written"
            elif candidate.score > self.traces[active[candidate.row]].score + self.settings.gain:
                candidate.verdict = "not chosen"
                gaining.setdefault(candidate.row, []).append(candidate)
        return gaining

    def _accepted(self, active: list[int], reach: Reach, candidates: list[Candidate]) -> dict[int, Candidate]:
        """The candidate of each row that gains enough, is fluent, and comes about under what can be added.

        What is added is changed accordingly. Candidates are looked at best first, those of all rows at once.
        """
        waiting = self._gaining(active, candidates)
        accepted: dict[int, Candidate] = {}
        while waiting:
            chosen = list(self._fittest(active, waiting).values())
            for each in chosen:
                each.verdict = "accepted"
            self._open(active, reach, chosen)
            accepted |= {each.row: each for each in chosen if each.verdict == "accepted"}
            left = {row: [each for each in some if each.verdict == "not chosen"] for row, some in waiting.items() if row not in accepted}
            waiting = {row: some for row, some in left.items() if some}
        return accepted

    def _fittest(self, active: list[int], waiting: dict[int, list[Candidate]]) -> dict[int, Candidate]:
        """For each row, of the fluent candidates that gain nearly as much as the best, the one whose reply fits its prompt best;
        of equals, the least done. What is not fluent is told so; rows may be left without one.

        A reply fits that is likely as a whole (per token, a long sentence would come before a short right answer), and likelier
        here than after a prompt that says nothing: else "i do not know that" would come before many a right answer.
        """

        def gain(candidate: Candidate) -> float:
            return min(candidate.score, self.settings.goal) - self.traces[active[candidate.row]].score

        near = [
            candidate for some in waiting.values() for candidate in some if gain(candidate) >= self.settings.share * max(map(gain, some))
        ]
        plain = self._likelihoods([(active[candidate.row], self.traces[active[candidate.row]].plain.ids) for candidate in near])
        said = self._likelihoods([(active[candidate.row], candidate.ids) for candidate in near])
        for candidate, was, now, anywhere in zip(near, plain, said, self._likelihoods([(ANYWHERE, candidate.ids) for candidate in near])):
            candidate.ratio, candidate.log_probability = float((_after_opening(was) - _after_opening(now)).exp()), float(now.sum())
            candidate.pmi = candidate.log_probability - float(anywhere.sum())
            if candidate.ratio > self.settings.perplexity_ratio:
                candidate.verdict = "not fluent"
        best: dict[int, Candidate] = {}
        for candidate in sorted(
            near, key=lambda candidate: (-round(candidate.fit, 3), candidate.branch > 0, candidate.eta, candidate.branch)
        ):
            if candidate.verdict == "not chosen":
                best.setdefault(candidate.row, candidate)
        return best

    def _open(self, active: list[int], reach: Reach, chosen: list[Candidate]) -> None:
        """Put what was chosen in force, with what makes its reply open as it does; what cannot be made to is not accepted."""
        if not chosen:
            return
        rows, sizes = [candidate.row for candidate in chosen], [candidate.eta for candidate in chosen]
        values = torch.stack([reach.at(layer, rows, sizes) for layer in range(len(self.norms))])
        turned = [number for number, candidate in enumerate(chosen) if candidate.branch]
        if turned:
            prompts = [self.ids[active[chosen[number].row]] for number in turned]
            more, reached = opened_with(self.session, prompts, values[:, turned], [chosen[number].ids[0] for number in turned])
            values[-1, turned, -1] += more
            for place, number in enumerate(turned):
                size = values[-1, number, -1].norm() / self.norms[-1, active[chosen[number].row], -1]
                if not reached[place] or size > self.settings.opening_cap:
                    chosen[number].verdict = "opening out of reach"
        for number, candidate in enumerate(chosen):
            if candidate.verdict == "accepted":
                self.added[:, active[candidate.row]] = values[:, number]

    # -- what is said, and what is thought of it ---------------------------------------------------

    def _said(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A reply without its end token."""
        return tuple(token for token in ids if token not in self.session.end_ids)

    def _as_written(self, number: int, ids: tuple[int, ...]) -> bool:
        """Whether a reply's text, written again, gives its tokens: else whoever has the text has not what was judged. That is
        not asked where the plain reply does not do so either."""
        if ids not in self.written[number]:
            plain = self.traces[number].plain.ids
            kept = self.session.encode_reply(self.session.decode(ids)) == list(self._said(ids))
            self.written[number][ids] = kept or (ids != plain and not self._as_written(number, plain))
        return self.written[number][ids]

    def _reply(self, number: int, ids: tuple[int, ...]) -> Reply:
        return Reply(self.opened[number] + self.session.decode(ids), ids)

    def score(self, exchanges: Sequence[tuple[int, tuple[int, ...]]]) -> list[float]:
        """S of replies to prompts, by number; what was met before is not asked again."""
        new = [(number, ids) for number, ids in dict.fromkeys(exchanges) if ids not in self.seen[number]]
        if new:
            scores = exchange_scores(self.session, [[*self.ids[number], *self._said(ids)] for number, ids in new], self.suffixes)
            for (number, ids), score in zip(new, scores.tolist()):
                self.seen[number][ids] = score
        return [self.seen[number][ids] for number, ids in exchanges]

    def _likelihoods(self, exchanges: Sequence[tuple[int, tuple[int, ...]]]) -> list[Tensor]:
        """Log-probabilities of replies' tokens, to the uncontrolled model: [token] each."""
        new = [(number, ids) for number, ids in dict.fromkeys(exchanges) if ids not in self.likely[number]]
        if new:
            with self.session.uncontrolled():
                asked = [NOTHING if number == ANYWHERE else self.prompts[number] for number, _ in new]
                likelihoods = self.session.reply_log_likelihoods(asked, [ids for _, ids in new])
            for (number, ids), likelihood in zip(new, likelihoods):
                self.likely[number][ids] = likelihood.double()
        return [self.likely[number][ids] for number, ids in exchanges]


def _after_opening(log_probabilities: Tensor) -> Tensor:
    """Mean log-probability of what follows the first token, which is chosen and not said of the model's own accord."""
    return log_probabilities[1:].mean() if len(log_probabilities) > 1 else log_probabilities.mean()


@dataclass(frozen=True, eq=False)
class Reach:
    """Where steps of any size from what is `given` lead, all [layer, row, width, d_model]; norms [layer, row, width]."""

    given: Tensor
    unit: Tensor
    norms: Tensor
    cap: float

    def at(self, layer: int, rows: list[int], sizes: list[float]) -> Tensor:
        """[row, width, d_model] of one layer."""
        given = self.given[layer, rows]
        if layer == len(self.given) - 1:
            return given  # no question depends on it: it holds what replies open with
        far = given + torch.tensor(sizes, device=given.device)[:, None, None] * self.unit[layer, rows]
        return capped(far, self.norms[layer, rows], self.cap)
