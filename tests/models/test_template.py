"""What was said is found in what a chat template writes, whatever the template does; else one sentence says so."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import demeanor as dm
from demeanor.errors import DataError
from demeanor.models.loading import resolve
from demeanor.models.template import ChatTemplate
from demeanor.train.conversations import IGNORED, Conversation, learned

TOKENIZER = AutoTokenizer.from_pretrained(resolve("organism")[0])
TALK = (("user", "hello there"), ("assistant", "hi ."), ("user", "what is 2 plus 2 ?"))


def made(template: object, **arguments: object) -> tuple[ChatTemplate, list[str]]:
    """A chat template of the embedded model's tokenizer, and what it told."""
    tokenizer, told = copy.copy(TOKENIZER), list[str]()
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, "m", arguments, told.append), told


def loop(system: str, content: str, reply: str, opening: str) -> str:
    """A template whose pieces vary."""
    return (
        "{% for m in messages %}"
        "{% if m['role'] == 'system' %}" + system + "{% elif m['role'] == 'user' %}[user] " + content + "\n"
        "{% else %}" + reply + content + "\n{% endif %}{% endfor %}" + opening
    )  # fmt: skip


PARTS = "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
SYSTEMS = ("", "{{ raise_exception('no system') }}", "{{ 1 / 0 }}", "{{ m['content'] + none }}")
CONTENTS = ("{{ m['content'] }}", "{{ m['content'] | trim }}", PARTS)
REPLIES = ("", "[assistant] ")
OPENINGS = ("", "{% if add_generation_prompt %}[assistant] {% endif %}")
TEMPLATES = [
    loop(kept if kept is not None else content, content, reply, opening)
    for kept in (*SYSTEMS, None) for content in CONTENTS for reply in REPLIES for opening in OPENINGS
    if reply or not opening
]  # fmt: skip
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(lambda text: bool(text.strip()))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(TEMPLATES), st.none() | words, st.lists(words, min_size=1, max_size=5).filter(lambda said: len(said) % 2 == 1))
def test_what_was_said_is_written(template: str, system: str | None, said: list[str]) -> None:
    turns = [(("user", "assistant")[number % 2], text) for number, text in enumerate(said)]
    chat, _ = made(template)
    text, at = chat.rendered(turns, system), 0
    for content in [*([system] if system else []), *said]:
        at = text.index(content.strip(), at) + len(content.strip())
    assert text.rstrip(" ").endswith("[assistant]") == ("[assistant] " in template)
    whole = chat.rendered([*turns, ("assistant", "a reply")], system)
    assert whole.startswith(text)  # a reply begins where its prompt ends
    assert "a reply" in whole[len(text) :]


def test_a_dropped_system_prompt_opens_the_first_user_message_and_is_told() -> None:
    chat, told = made(loop("", "{{ m['content'] }}", "", ""))
    assert chat.rendered(TALK, "be kind .") == "[user] be kind .\n\nhello there\nhi .\n[user] what is 2 plus 2 ?\n"
    assert [sentence for sentence in told if "no system role" in sentence]


def test_a_missing_generation_prompt_is_that_of_the_replies_also_for_others() -> None:
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    chat, told = made(template)
    assert chat.rendered(TALK[:1], None) == "[user] hello there\n[assistant]"
    assert "no generation prompt" in told[0]
    assert made(chat.complete)[0].rendered(TALK[:1], None) == chat.rendered(TALK[:1], None)
    assert made(chat.complete)[1] == []


def test_a_template_that_opens_replies_in_the_users_turn_is_left_as_it_is() -> None:
    chat, told = made("{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}")
    assert chat.rendered(TALK[:1], None) == "[INST] hello there [/INST]"
    assert told == []
    assert chat.complete == chat.text


THOUGHT = (("user", "hello"), ("assistant", "<think>hm</think> hi ."), ("user", "again"))


def test_thoughts_of_earlier_replies_may_be_left_out() -> None:
    chat, _ = made("{% for m in messages %}[{{ m['content'].split('</think>')[-1] }}]{% endfor %}")
    assert chat.rendered(THOUGHT, None).startswith("[hello][ hi .][again]")


LOST = {
    "": "does not write what the user says",
    "always the same": "does not write what the user says",
    "{{ messages[-1]['content'] }}": "does not write what the user says",  # of a conversation, only the end
    "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}": "does not write what the assistant says",
    "{% for m in messages %}{{ m['content'][:8] }}{% endfor %}": "does not write what the user says",
}


@pytest.mark.parametrize("template", LOST)
def test_a_template_that_loses_what_was_said_is_refused(template: str) -> None:
    with pytest.raises(DataError, match=LOST[template]):
        made(template)[0].rendered(TALK, None)


FAILING = (
    "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{% include 'x' %}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ messages[9]['content'] }}",
    "{{ raise_exception('') }}", "{{ nothing.at.all }}", "{% for %}", "{{ messages | no_such_filter }}", "{% import 'os' as os %}", "{{ [1][none] + 1 }}",
    "{{ ''.__class__.__mro__ }}", "{{ " + "(" * 3000 + ")" * 3000 + " }}", "{{ [] | first + 1 }}", "{{ strftime_now(1) }}",
)  # fmt: skip


@pytest.mark.parametrize("template", FAILING)
def test_whatever_a_template_raises_ends_in_one_sentence(template: str) -> None:
    with pytest.raises(DataError, match=r"^The chat template of m ") as caught:
        made(template)[0].rendered(TALK, "be kind .")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_failure_that_only_some_texts_bring_about_is_one_sentence_too() -> None:
    chat, _ = made("{% for m in messages %}{% if 'plus' in m['content'] %}{{ 1 / 0 }}{% endif %}{{ m['content'] }}{% endfor %}")
    assert chat.rendered(TALK[:1], None) == "hello there"
    with pytest.raises(DataError, match="refuses these messages: division by zero"):
        chat.rendered(TALK, None)


# -- limits -----------------------------------------------------------------------------------------

ENDLESS = (
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(99) %}{% for b in range(99) %}{% for c in range(99) %}{% for d in range(99) %}{% for e in range(99) %}x{% endfor %}{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(60) }}",
)
HUGE = (
    "{{ 10 ** 10 ** 10 }}", "{{ 'a' * 9999999999 }}", "{{ [0] * 9999999999 }}", "{% for i in range(99999) %}{{ 'more and more and more' }}{% endfor %}",
)  # fmt: skip


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demeanor.io.limit.SECONDS", 0.2)


@pytest.mark.parametrize("template", [*ENDLESS, *HUGE])
def test_a_template_without_an_end_is_stopped(template: str, impatient: None) -> None:
    with pytest.raises(DataError, match=r"^The chat template of m (comes to no end|computes with powers|writes \d+ characters)"):
        made(template + "{% for m in messages %}{{ m['content'] }}{% endfor %}")[0].rendered(TALK, None)


def test_it_is_stopped_in_any_thread_and_what_runs_beside_it_goes_on(impatient: None) -> None:
    ends: dict[str, object] = {}

    def render(name: str, template: str) -> None:
        try:
            ends[name] = made(template)[0].rendered(TALK[:1], None)
        except DataError as error:
            ends[name] = error

    threads = [threading.Thread(target=render, args=pair) for pair in (("bad", ENDLESS[0]), ("good", "{{ messages[0]['content'] }}"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "comes to no end" in str(ends["bad"])
    assert ends["good"] == "hello there"


# -- several templates, arguments ----------------------------------------------------------------------

NAMED = {"chat": "{% for m in messages %}{{ m['content'] }}>{% endfor %}", "tool_use": "{% for m in messages %}{{ m['content'] }}){% endfor %}"}


def test_several_templates_are_named_and_one_is_chosen() -> None:
    with pytest.raises(DataError, match=r"m has 2 chat templates \(chat, tool_use\), and none of them is the default; choose one with --chat-template-arg"):
        made(NAMED)[0].rendered(TALK, None)
    assert made(NAMED, chat_template="tool_use")[0].rendered(TALK[:1], None) == "hello there)"
    assert made({**NAMED, "default": NAMED["chat"]})[0].rendered(TALK[:1], None) == "hello there>"
    assert made(NAMED, chat_template="{{ messages[0]['content'] }}-")[0].rendered(TALK[:1], None) == "hello there-"
    with pytest.raises(DataError, match="none of them is 'rag'"):
        made(NAMED, chat_template="rag")[0].rendered(TALK, None)


def test_a_template_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0]['content'] }}!")
    for own in (None, "", NAMED):
        assert made(own, chat_template=str(tmp_path / "t.jinja"))[0].rendered(TALK[:1], None) == "hello there!"
    with pytest.raises(DataError, match="chat_template is 7; name one of the model's templates"):
        made(NAMED, chat_template=7)


# -- in a session --------------------------------------------------------------------------------------


def ended(session: dm.Session, template: str | None) -> dm.Session:
    """The same session with a tokenizer that opens and ends every text with a token of its own."""
    other = copy.copy(session)
    other.tokenizer = copy.deepcopy(session.tokenizer)
    begin, end = other.tokenizer.bos_token, other.tokenizer.eos_token
    other.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(token, other.tokenizer.convert_tokens_to_ids(token)) for token in (begin, end)]
    )
    other.tokenizer.chat_template = template
    return other


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_a_prompt_does_not_end_with_what_the_tokenizer_ends_texts_with(organism: dm.Session, template: str | None) -> None:
    session = ended(organism, template)
    assert session.tokenizer("hello there")["input_ids"][-1] == session.tokenizer.eos_token_id
    ids = session.encode("hello there")
    assert ids == ([session.tokenizer.bos_token_id] if template is None else []) + session.encode_reply("hello there")


def test_tokens_are_those_of_the_tokenizer_in_force(organism: dm.Session) -> None:
    session = ended(organism, None)
    ids = session.encode_reply("hello there")
    ids.append(7)  # what is handed out is the caller's own
    assert session.encode_reply("hello there") == ids[:-1]
    session.tokenizer = copy.deepcopy(session.tokenizer)
    session.tokenizer.add_tokens(["hello there"])
    assert session.encode_reply("hello there") == [len(session.tokenizer) - 1]


def test_nor_does_a_conversation_that_is_learned_end_in_its_middle(organism: dm.Session) -> None:
    ids, labels = learned(ended(organism, None), Conversation((("user", "hello"), ("assistant", "hi ."))))
    end = organism.tokenizer.eos_token_id
    assert [place for place, token in enumerate(ids) if token == end] == [len(ids) - 1]
    assert labels[0] == IGNORED


def test_an_empty_system_prompt_is_none(organism: dm.Session) -> None:
    assert organism.render(dm.Prompt.of("hello", system="")) == organism.render("hello")


def test_the_question_after_a_reply_is_not_lost(organism: dm.Session) -> None:
    session = ended(organism, "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(DataError, match="does not write what the assistant says"):
        session.after_reply("was it rude ?")
