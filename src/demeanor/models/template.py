"""A tokenizer's chat template: conversations as the model sees them.

What was said must be found in what the template writes. Templates differ in what they take, so each shape of conversation
(who speaks in which order) is tried with marks in place of its texts, once, in these forms, and the first that loses no
mark is used:

1. as it is, each content a text;
2. each content a list of parts, for templates that loop over parts;
3. and 4. the same with the system prompt before the first user message, for templates without a system role.

A template that writes a header before replies, but not where a reply is to begin, gets that header there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateSyntaxError, nodes

from ..errors import DataError
from ..io.display import brief, shown
from ..io.limit import Endless, limited
from .thinking import spoken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = tuple[str, str]  # (role, content)
Messages = list[dict[str, Any]]

CHOICE = "chat_template"  # the argument that names one of several templates, or a file of one, or is one
WRITTEN = 1_000_000  # most characters that a template adds to what was said
OWN_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # of transformers, around what the assistant says; jinja does not know it
KEPT, SHORT = 1 << 14, 4000  # conversations whose text and texts whose tokens are kept, and how many characters that has at most
REPEATED = 100_000  # longest text or list that a template may make by a multiplication that it spells out


class Failed(DataError):
    """The template failed on these messages; in another form it may take them."""


@dataclass(frozen=True)
class Form:
    """How a template takes conversations of one shape."""

    parts: bool  # each content is a list of parts
    system_in_user: bool  # the system prompt opens the first user message
    header: str = ""  # what is written before the reply, where the template does not

    def messages(self, turns: Sequence[Turn], system: str | None) -> Messages:
        """The conversation as messages that the template takes."""
        turns = list(turns)
        if system and self.system_in_user:
            turns[0] = (turns[0][0], f"{system}\n\n{turns[0][1]}")
        elif system:
            turns.insert(0, ("system", system))
        return [{"role": role, "content": [{"type": "text", "text": text}] if self.parts else text} for role, text in turns]


FORMS = tuple(Form(parts, in_user) for in_user in (False, True) for parts in (False, True))


class ChatTemplate:
    """The chat template of one model, which the user calls `name`; `tell` says a sentence once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, arguments: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        self.tokenizer, self.name, self.tell = tokenizer, name, tell
        self.choice = _choice(arguments.get(CHOICE))
        self.arguments = {key: value for key, value in arguments.items() if key != CHOICE}
        self._forms: dict[tuple[str, tuple[str, ...], bool], Form] = {}
        self._checked: set[str] = set()
        self._texts: dict[tuple[str, tuple[Turn, ...], str | None], str] = {}  # by template and conversation: every trial asks the same ones

    @property
    def text(self) -> str | None:
        """The template itself; None where the model has none. DataError where there are several and none is chosen."""
        own: Any = self.tokenizer.chat_template
        if not isinstance(own, Mapping):
            return own if self.choice is None else self.choice
        if self.choice is not None and "{" in self.choice:
            return self.choice
        chosen = self.choice or "default"
        if chosen not in own:
            what = "none of them is the default" if self.choice is None else f"none of them is {chosen!r}"
            raise DataError(
                f"{self.name} has {len(own)} chat templates ({', '.join(sorted(own))}), and {what}; "
                f"choose one with --chat-template-arg {CHOICE}=NAME."
            )
        return str(own[chosen])

    @property
    def complete(self) -> str | None:
        """The template as text that also writes the header of a reply, for whoever applies it without us."""
        header = "" if self.text is None else self.form(("user",), system=False).header
        return f"{self.text}{{% if add_generation_prompt %}}{{{{ {header!r} }}}}{{% endif %}}" if header else self.text

    def messages(self, turns: Sequence[Turn], system: str | None) -> Messages:
        """A conversation that ends with the user, as messages that the template takes."""
        return self._form_of(turns, system).messages(turns, system)

    def answer(self, turns: Sequence[Turn], system: str | None, reply: str) -> Messages:
        """A reply to such a conversation, as messages that the template takes."""
        return self._form_of(turns, system).messages([("assistant", reply)], None)

    def rendered(self, turns: Sequence[Turn], system: str | None) -> str:
        """A conversation up to where a reply begins, or up to the end of a reply where that is its last turn.

        Raises DataError where the template fails, or loses something that was said.
        """
        key = (self.text or "", tuple(turns), system)
        text = self._texts.get(key)
        if text is None:
            text = self._rendered(turns, system)
            if len(self._texts) >= KEPT:
                self._texts.clear()
            if len(text) <= SHORT:
                self._texts[key] = text
        return text

    def _rendered(self, turns: Sequence[Turn], system: str | None) -> str:
        replied = turns[-1][0] == "assistant"
        form = self._form_of(turns[:-1] if replied and len(turns) > 1 else turns, system)
        text = self._apply(form.messages(turns, system), opened=not replied)
        lost = _lost(text, [*([("system", system)] if system else []), *turns])
        if lost is not None:
            raise DataError(
                f"The chat template of {self.name} does not write what the {lost[0]} says ({brief(lost[1], 40)!r}); "
                f"correct the template, or give another with --chat-template-arg {CHOICE}=FILE."
            )
        return text if replied else text + form.header

    def _form_of(self, turns: Sequence[Turn], system: str | None) -> Form:
        return self.form(tuple(role for role, _ in turns), bool(system))

    def form(self, roles: tuple[str, ...], system: bool) -> Form:
        """The form for conversations in which these roles speak in this order, with a system prompt or without."""
        key = (self.text or "", roles, system)
        if key not in self._forms:
            self._forms[key] = self._fitting(roles, system)
        return self._forms[key]

    def _fitting(self, roles: tuple[str, ...], system: bool) -> Form:
        marks = [(role, f"mark{number}z") for number, role in enumerate(roles)]
        above = "mark9system" if system else None
        said = [*([("system", above)] if above else []), *marks]
        failure: DataError | None = None
        for form in FORMS if system else FORMS[:2]:
            try:
                text = self._apply(form.messages(marks, above), opened=True)
            except Failed as error:
                failure = failure or error
                continue
            lost = _lost(text, said)
            if lost is None and "'text':" not in text:  # else a list of parts was written as Python writes it
                if form.system_in_user:
                    self.tell(f"The chat template of {self.name} has no system role; system prompts open the first user message.")
                return Form(form.parts, form.system_in_user, self._header(form, marks, above, text))
            failure = failure or DataError(
                f"The chat template of {self.name} does not write what the {lost[0] if lost else 'user'} says; "
                f"correct the template, or give another with --chat-template-arg {CHOICE}=FILE."
            )
        assert failure is not None
        raise failure

    def _header(self, form: Form, marks: Sequence[Turn], system: str | None, opened: str) -> str:
        """What stands before a reply and not at the end of a prompt, "" where prompts end as replies begin."""
        reply = "mark9reply"
        try:
            closed = self._apply(form.messages(marks, system), opened=False)
            if closed != opened or marks[-1][0] != "user":
                return ""
            whole = self._apply(form.messages([*marks, ("assistant", reply)], system), opened=False)
        except Failed:
            return ""  # it takes no replies, so nothing is known of their header
        header, found, _ = whole.removeprefix(opened).partition(reply)
        if not whole.startswith(opened) or not found:
            self.tell(f"The chat template of {self.name} has no generation prompt, and its replies do not show one; prompts end as it writes them.")
            return ""
        header = header.rstrip(" ")  # tokenizers write the space before a word with the word
        if not header.strip():
            return ""
        self.tell(f"The chat template of {self.name} has no generation prompt; prompts end with the header of its replies, {header!r}.")
        return header

    def _apply(self, messages: Messages, opened: bool) -> str:
        """What the template writes. Raises Failed where it fails, DataError where it comes to no end."""
        template = self.text
        assert template is not None
        self._refuse_bombs(template)
        try:
            text = limited(
                lambda: str(
                    self.tokenizer.apply_chat_template(
                        messages, chat_template=template, tokenize=False, add_generation_prompt=opened, **self.arguments
                    )
                )
            )
        except Endless as error:
            raise DataError(f"The chat template of {self.name} comes to no end; it was stopped. Correct the template.") from error
        except Exception as error:  # the template is code that came with the model, and may raise anything
            reason = brief(error, 200).rstrip(".") or type(error).__name__
            raise Failed(f"The chat template of {self.name} refuses these messages: {reason}.") from error
        if len(text) > WRITTEN + sum(len(str(message["content"])) for message in messages):
            raise DataError(f"The chat template of {self.name} writes {len(text)} characters; correct the template.")
        return text

    def _refuse_bombs(self, template: str) -> None:
        """DataError for a template with a step that could not be stopped while it is made: powers, and long repetitions."""
        if template in self._checked:
            return
        try:
            tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(OWN_TAG.sub("", template))
        except (TemplateSyntaxError, RecursionError):
            return  # transformers says what is wrong with it
        factors = [side for node in tree.find_all(nodes.Mul) for side in (node.left, node.right) if isinstance(side, nodes.Const)]
        if next(tree.find_all(nodes.Pow), None) or any(isinstance(one.value, int) and one.value > REPEATED for one in factors):
            raise DataError(f"The chat template of {self.name} computes with powers or huge factors, which no prompt needs; correct the template.")
        self._checked.add(template)


def _choice(value: object) -> str | None:
    """The argument `chat_template`: a name, a template, or the text of the file that it names. DataError for what is no text."""
    if value is None or (isinstance(value, str) and "{" in value):
        return value
    if not isinstance(value, str):
        raise DataError(f"{CHOICE} is {shown(value)}; name one of the model's templates, or a file that holds one.")
    path = Path(value)
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else value
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The chat template {path} cannot be read: {error}.") from error


def _lost(text: str, said: Sequence[Turn]) -> Turn | None:
    """The first turn that is not in the text. Space around it may be, and a reply's thoughts, which templates leave out."""
    seen = None
    for role, content in said:
        core = content.strip()
        if core in text:
            continue
        seen = " ".join(text.split()) if seen is None else seen
        if " ".join((spoken(core) if role == "assistant" else core).split()) not in seen:
            return role, content
    return None

