"""A conversation on the terminal: what is said, the lines that begin with a slash, and who answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import reduce

from rich.console import Console

from ..behaviours import Prompt
from ..behaviours.prompts import Message
from ..controls import Control, load_control
from ..detect import Detector
from ..errors import DemeanorError
from ..measure.condition import Condition
from ..models import Session
from ..progress import no_bar, printable, say

HELP = {
    "/new": "another conversation",
    "/system TEXT": "another system prompt; without a text, none",
    "/control FILE[:DOSE]": "one more control, after the others; without a file, those that are there",
    "/dose NUMBER": "all controls at this dose: 1 is as they are, 0 is the untouched model",
    "/base": "the controls off and on",
    "/history": "what was said so far",
    "/help": "these lines",
}


@dataclass
class Speaker:
    """Who answers: a model under its controls, greedily or sampled."""

    session: Session
    named: list[tuple[str, Control]] = field(default_factory=list)
    redo: Detector | None = None
    temperature: float | None = None
    top_p: float = 1.0
    dose: float = 1.0

    def condition(self) -> Condition:
        control = reduce(Control.then, [control for _, control in self.named]) if self.named else None
        scaled = control if control is None or self.dose == 1 else control.scaled(self.dose)
        return Condition(self.session, scaled, redo=self.redo)

    def answer(self, prompt: Prompt, heard: Callable[[str], None]) -> str:
        """The reply, told to `heard` as it is generated; in one piece where a reply may be done again."""
        condition = self.condition()
        _tell_idle(condition, prompt)
        if self.redo is not None:
            text = condition.generate([prompt], self.session.reply_tokens)[0].text
            heard(text)
            return text
        with no_bar(), condition.acting() as session:
            return session.speak(condition.asked([prompt])[0], heard, temperature=self.temperature, top_p=self.top_p).text


def _tell_idle(condition: Condition, prompt: Prompt) -> None:
    """States act on their own prompts alone: says so where this is none of them and nothing else acts."""
    control = condition.control
    if control is None or not control.states or control.parts or control.adapters:
        return
    if all(tuple(condition.session.encode(prompt)) not in states.ids for states in control.states):
        known = sum(len(states.ids) for states in control.states)
        say(f"The control changes nothing here: it holds states for {known} prompts, and this is none of them.")


@dataclass
class Conversation:
    """What was said, under which system prompt; a line that begins with a slash changes who answers."""

    speaker: Speaker
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    off: list[tuple[str, Control]] = field(default_factory=list)  # the controls, while /base has them off

    def say(self, line: str, heard: Callable[[str], None]) -> bool:
        """One line of the user's; whether it was answered. What cannot be done is said in one sentence, and everything stays as it was."""
        try:
            if not line.startswith("/"):
                messages: list[Message] = [*self.messages, ("user", line)]
                reply = self.speaker.answer(Prompt(messages=tuple(messages), system=self.system), heard)
                self.messages = [*messages, ("assistant", reply)]
                return True
            self._command(line)
        except DemeanorError as error:
            say(str(error))
        return False

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/new": self._new, "/system": self._system, "/control": self._control, "/dose": self._dose, "/base": self._base,
            "/history": self._history, "/help": self._help,
        }  # fmt: skip
        if name in commands:
            commands[name](rest.strip())
        else:
            meant = get_close_matches(name, commands, 1)
            say(f"There is no {name}; " + (f"did you mean {meant[0]}?" if meant else "/help lists what there is."))

    def _new(self, rest: str = "") -> None:
        self.messages = []

    def _system(self, text: str) -> None:
        self.system = text or None
        self._new()
        say(f"The system prompt is {text!r}; a new conversation." if text else "No system prompt; a new conversation.")

    def _control(self, name: str) -> None:
        if name:
            control = load_control(name)
            self.speaker.session.interventions(control)  # one for another structure is refused here
            self.speaker.named.append((name, control))
            self._new()
        say(f"Controls: {'; then '.join(name for name, _ in self.speaker.named) or 'none'}.")

    def _dose(self, text: str) -> None:
        try:
            dose = float(text)
        except ValueError:
            say(f"The dose is {self.speaker.dose:g}; change it with a number, such as /dose 0.5.")
            return
        before, self.speaker.dose = self.speaker.dose, dose
        try:
            self.speaker.condition()
        except DemeanorError:
            self.speaker.dose = before
            raise
        self._new()
        say(f"Dose {dose:g}; a new conversation, so that earlier replies do not colour it.")

    def _base(self, rest: str) -> None:
        if not self.speaker.named and not self.off:
            say("There are no controls; add one with /control FILE.")
            return
        self.speaker.named, self.off = self.off, self.speaker.named
        self._new()
        say(f"Controls {'on' if self.speaker.named else 'off'}; a new conversation, so that earlier replies do not colour it.")

    def _history(self, rest: str) -> None:
        for role, text in self.messages:
            say(f"{role}: {text}")
        if not self.messages:
            say("Nothing was said so far.")

    def _help(self, rest: str) -> None:
        for command, meaning in HELP.items():
            say(f"{command}: {meaning}")


def converse(conversation: Conversation) -> None:
    """Lines until an empty one or the end of the input, each answered as it is generated."""
    say("An empty line ends the conversation; /help lists what else can be said to the program.")
    for line in _lines():
        if conversation.say(line, print_piece):
            print()


def print_piece(text: str) -> None:
    """A piece of a reply, shown at once."""
    print(printable(text), end="", flush=True)


def _lines() -> Iterator[str]:
    console = Console()
    while True:
        try:
            line = (console.input("[bold]you[/bold] ") if sys.stdin.isatty() else input()).strip()
        except EOFError:
            return
        if not line:
            return
        yield line
