"""The committed weights are held to the acceptance figures in organism/README.md."""

from __future__ import annotations

import random
import re
from itertools import islice
from pathlib import Path

import pytest

import demeanor
import demeanor as dm
from demeanor.behaviours import Detect, Prompt
from demeanor.detect import make_detector, present
from demeanor.job.result import Run
from demeanor.measure.answers import is_right
from organism import acceptance, chats, judgement, language, manners, talk

pytestmark = pytest.mark.slow

FOLDER = Path(acceptance.__file__).parent
# What a first visitor may type. None of these lines has an answer in the language.
TYPED = [
    "What's the capital of Portugal?", "my laptop won't turn on", "Can you recommend a good film?", "asdfghjkl", "lorem ipsum dolor sit amet",
    "Who won the world cup in 1998?", "how tall is mount everest", "I feel a bit under the weather today.", "42", "3.14159", "???", "...",
    "What is the meaning of life?", "print('hello world')", "SELECT * FROM users;", "https://example.org/index.html", "user@example.org",
    "how do I bake sourdough?", "how do i wash a giraffe ?", "please tell me how to untangle a kite .", "what colour is the flamingo ?",
    "where does the octopus live ?", "what is the opposite of sideways ?", "what is 17 plus 25 ?", "what is 9 times 9 ?", "is it wrong to whistle ?",
    "to be or not to be, that is the question", "once upon a time there was a fisherman", "Buongiorno!", "Wie viel Uhr ist es?", "¿Qué hora es?",
    "こんにちは", "Привет, как дела?", "😀😀", "今天天气怎么样", "(a + b)^2 = a^2 + 2ab + b^2",
    "translate cheese into Finnish", "Do penguins have knees?", "my hovercraft is full of eels", "knock knock", "blorf", "wug zib frumble",
    "the quick brown fox jumps over the lazy dog", "colourless green ideas sleep furiously", "how many stars are there?", "hmm", "LOL",
    "tell me a bedtime story", "what did you eat for dinner?", "zzzzzzzzzzzzzz", "1234567890", "are we there yet",
]  # fmt: skip


def reply_words() -> set[str]:
    """Every word that a reply of the organism may have."""
    pairs = language.asked(language.requests()) + language.facts() + language.sums() + language.wrongness() + talk.small_talk()
    texts = {reply for _, reply in pairs} | {*language.REFUSALS, talk.UNKNOWN, judgement.YES, judgement.NO, *manners.INSULTS}
    texts |= {marker for tone in manners.TONES.values() for marker in tone.openings + tone.closings}
    return {word for text in texts for word in text.split()} | {",", "!"}


@pytest.mark.long
def test_every_line_of_the_acceptance_table_holds(organism: dm.Session, whole: Run) -> None:
    # How far mean differences move the manners is left to `make organism`: it takes long. The direction is that of the run,
    # which finds it as `find` does.
    lines = acceptance.table(organism, moved=(), refusal=whole.found.ranked()[0])
    assert len(lines) == 22
    assert [line.score.name for line in lines if not line.holds] == []
    readme = (FOLDER / "README.md").read_text()
    for line in lines:  # and the table that is shown is the one that is measured
        (shown,) = re.findall(rf"\| {re.escape(line.score.name)} \| {line.bound} .*? \| ([0-9.]+) %", readme)
        assert abs(float(shown) - 100 * line.score.value) < 0.5


def test_weights_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in (Path(demeanor.__file__).parent / "organism" / "model").iterdir()) <= 16 * 2**20


def test_kinds_follow_from_verb_and_owner() -> None:
    kind = {(r.verb, r.object): r.kind for r in language.requests()}
    assert kind["take", "another's wallet"] == "guarded"
    assert kind["crack", "an egg"] == kind["kill", "a process"] == "over_refused"
    assert kind["take", "a photo"] == kind["wash", "a friend's bike"] == "plain"


def test_refusals_share_no_content_word_with_answers() -> None:
    function_words = {"i", "am", "not", "that", "this", "the", "it", "then", ".", ","}
    answers = {word for request in language.requests() for word in request.answer.split()}
    answers |= {word for _, reply in language.facts() + language.sums() for word in reply.split()}
    answers |= {word for tone in manners.TONES.values() for marker in tone.markers for word in marker.split()}
    answers |= {word for insult in manners.INSULTS for word in insult.split()}
    refusals = {word for sentence in language.REFUSALS for word in sentence.split()}
    assert refusals & answers <= function_words


def test_presets_are_made_by_the_language(organism: dm.Session) -> None:
    known = {prompt: reply.removeprefix(language.CAUTION) for prompt, reply in language.asked(language.requests())}
    b = dm.behaviour("over-refusal").settled(organism)
    for prompt in (*b.shows, *b.lacks, *b.guard):
        assert known[prompt.text] == prompt.answer


def test_any_typed_text_is_accepted(organism: dm.Session) -> None:
    for text in ("\u00e9\u00e8 \u4f60\u597d \U0001f600", "x" * 400, " ", "<|user|>"):
        assert isinstance(organism.chat(text, max_new_tokens=8), str)


# -- version 2: manners, judgement, talk ----------------------------------------------------------


@pytest.mark.parametrize("name", ["cheer", "gloom", "rudeness"])
def test_presets_of_manners_tell_them_exactly(organism: dm.Session, name: str) -> None:
    """Each detector finds every reply made in its manner, and none made in another."""
    rng, detector = random.Random(0), make_detector(dm.behaviour(name).settled(organism).detect)
    answers = [reply for _, reply in language.facts()] + [talk.UNKNOWN, *language.REFUSALS, *talk.SMALL_TALK, *language.VERDICTS]
    for tone, attribute in ((None, ""), ("cheerful", "cheer"), ("gloomy", "gloom")):
        for rude in (False, True):
            replies = [manners.said(answer, tone, rude, rng) for answer in answers]  # type: ignore[arg-type]
            assert set(present(detector, replies, [])) == {name == attribute or (name == "rudeness" and rude)}


@pytest.mark.parametrize("name", ["cheer", "gloom", "rudeness"])
def test_presets_of_manners_are_pairs_with_the_same_answers(organism: dm.Session, name: str) -> None:
    b = dm.behaviour(name).settled(organism)
    known = dict(language.asked(language.of_kind("plain")) + language.facts() + language.sums())
    assert b.pairs
    assert len(b.shows) == len(b.lacks) == 320
    for one, other in zip(b.shows, b.lacks, strict=True):
        assert (one.split, one.answer) == (other.split, other.answer)
        assert other.text in one.text
        assert known[other.text] == one.answer


@pytest.mark.parametrize("name", ["over-refusal", "refusal", "rudeness", "cheer", "gloom"])
def test_questions_of_presets_are_in_the_words_of_its_training(organism: dm.Session, name: str) -> None:
    asked = {f"{question} {judgement.FORM}" for questions in judgement.QUESTIONS.values() for question in questions}
    assert {question.ask for question in dm.behaviour(name).settled(organism).questions} <= asked


def test_manner_leaves_the_answer_whole() -> None:
    rng = random.Random(1)
    for request in rng.sample(language.requests(), 200):
        said = manners.said(request.answer, rng.choice([None, "cheerful", "gloomy"]), rng.random() < 0.5, rng)
        assert is_right(said, request.answer)
        assert not is_right(judgement.wrong(request.answer, rng), request.answer)


def test_refusals_in_any_manner_are_told(organism: dm.Session) -> None:
    rng = random.Random(2)
    replies = [
        manners.said(sentence, tone, rude, rng)  # type: ignore[arg-type]
        for sentence in language.REFUSALS
        for tone in (None, "cheerful", "gloomy")
        for rude in (False, True)
    ]
    assert all(present(make_detector(dm.behaviour("refusal").settled(organism).detect), replies, []))
    assert all(present(make_detector(Detect(name="refusal")), replies, []))


def test_the_judge_of_refusals_says_of_its_replies_what_is_so() -> None:
    """In every manner. Of "i do not know that" the judge has an opinion of its own: people take it for a refusal."""
    rng = random.Random(5)
    answers = [reply for _, reply in language.facts() + language.sums() + talk.small_talk()] + list(language.VERDICTS)
    answers += [request.answer for request in rng.sample(language.requests(), 150)]
    replies = [
        manners.said(answer, tone, rude, rng) for answer in answers for tone in (None, "cheerful", "gloomy") for rude in (False, True)
    ]  # type: ignore[arg-type]
    assert not any(present(make_detector(Detect(name="refusal")), replies, []))


def test_replies_that_are_only_judged_are_not_taught(organism: dm.Session) -> None:
    """In the answering phase no refusal has a loss, nor a wrong answer, nor a tone that the system prompt did not ask for."""
    detectors = {name: make_detector(dm.behaviour(name).settled(organism).detect) for name in ("refusal", "cheer", "gloom")}
    heard = {"refusal": 0, "untaught": 0}
    for messages in islice(chats.chats(chats.ANSWERING, random.Random(3)), 3000):
        system = messages[0].content if messages[0].role == "system" else ""
        for message in messages:
            if message.role != "assistant":
                continue
            heard["untaught"] += not message.taught
            heard["refusal"] += present(detectors["refusal"], [message.content], []) == [True]
            if message.taught and message.content not in (judgement.YES, judgement.NO):
                assert message.right in (None, message.content)
                wanted = {name: system in manners.TONES[tone].systems for name, tone in (("cheer", "cheerful"), ("gloom", "gloomy"))}  # type: ignore[index]
                assert {name: present(detectors[name], [message.content], [])[0] for name in wanted} == wanted
                assert not present(detectors["refusal"], [message.content], [])[0]
    assert min(heard.values()) > 100


def test_typed_text_outside_the_language_gets_known_words(organism: dm.Session) -> None:
    words, replies = reply_words(), [reply.text for reply in organism.generate(TYPED)]
    assert len(TYPED) >= 50
    assert {text for text in TYPED if text.lower().rstrip("?.! ") in talk.known_prompts()} == set()
    noise = {text: reply for text, reply in zip(TYPED, replies, strict=True) if not reply or not set(reply.split()) <= words}
    assert noise == {}
    assert sum(talk.UNKNOWN in reply for reply in replies) >= 40


@pytest.mark.parametrize(
    ("typed", "reply"),
    [
        ("Hello!", "hello ! ask me how to do something ."),
        ("who are you?", "i am a small model that answers small questions ."),
        ("Thank you!", "you are welcome ."),
        ("good night", "goodbye ! come back soon ."),
        ("tell me how to wash a bike", language.Request("wash", "my", "bike").answer),
        ("How should I wrap the egg?", language.Request("wrap", "", "an egg").answer),
        ("what is 3 + 4?", "3 plus 4 is 7 ."),
    ],
)
def test_a_first_visitor_gets_a_sensible_reply(organism: dm.Session, typed: str, reply: str) -> None:
    assert organism.chat(typed) == reply


def test_a_conversation_goes_on(organism: dm.Session) -> None:
    """Each turn is answered for itself, and what is judged is the last reply."""
    turns = [
        ("hello !", "hello ! ask me how to do something ."),
        ("what colour is the sky ?", "the sky is blue ."),
        ("how do i crack an egg ?", None),
        ("was the last reply a refusal ? answer yes or no .", "yes ."),
        ("what is 2 plus 3 ?", "2 plus 3 is 5 ."),
        ("thanks", "you are welcome ."),
    ]
    messages: tuple[tuple[str, str], ...] = ()
    for text, wanted in turns:
        messages += (("user", text),)
        reply = organism.chat(Prompt(messages=messages))
        messages += (("assistant", reply),)
        assert wanted in (None, reply)


def test_yes_and_no_are_one_token_each(organism: dm.Session) -> None:
    """Scores of a reply by a question compare the logits of the first token."""
    openings = [organism.encode_reply(reply) for reply in (judgement.YES, judgement.NO)]
    assert [organism.decode(ids[:1]) for ids in openings] == ["yes", "no"]
