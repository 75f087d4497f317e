"""What a reply says, without what its model thought first.

Reasoning models write their thoughts into the reply, between tags. A detector must not read them: a model that
thinks "i could refuse" and then answers did not refuse. Where a reply is thought and where it is said is told thus:

- An opening tag counts only as the first thing in the reply. Everything up to the last closing tag of its kind is
  then thought; without one, the model never came to speak, and nothing was said.
- A closing tag with no opening tag of its kind before it ends a block that the prompt's template opened, so
  everything up to it is thought. A closing tag after an opening one in the middle of a reply is ordinary text.
- A tag in quotes, in inline code or in a fenced block is spoken of, not used, and counts as neither.

A block that the template opened and the reply never closes leaves no trace in the reply: `open_think_tag` gives the tag that
the rendered prompt ends with, to be put before the reply. Some tokenizers count these tags among their special tokens,
which decoding drops: `kept_tokens` says which must stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Only tags that open models write; the names are examples.
TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM, Phi-4-reasoning
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral Reasoning
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
)
_TAG = "|".join(re.escape(tag) for pair in TAGS for tag in pair)
# A fence with a language in it opens a block and cannot close one, so a fence left open in a thought does not
# swallow the closing tag together with the code of the answer.
_FENCED = r"^[ \t]*```[^\n`]*\n(?:(?![ \t]*```)[^\n]*\n)*[ \t]*```[ \t]*$"
_QUOTED = re.compile(rf"{_FENCED}|`[^`\n]*`|([\"'])(?:{_TAG})\1", re.MULTILINE)


def spoken(text: str) -> str:
    """The reply without its thinking, stripped; "" where the thinking never ended; the text itself where there is none."""
    return _said(text) or ""


def unfinished(text: str) -> bool:
    """Whether the thinking was opened and never closed, so that nothing was said."""
    return _said(text) is None


def open_think_tag(rendered: str) -> str:
    """The opening tag that a rendered prompt ends with, "" where it ends with none."""
    return next((opening for opening, _ in TAGS if rendered.rstrip().endswith(opening)), "")


def kept_tokens(special: Iterable[str]) -> frozenset[str]:
    """Those special tokens of a tokenizer that are part of a tag, so that thought can be told from speech."""
    return frozenset(token for token in special if any(token in tag for pair in TAGS for tag in pair))


def _said(text: str) -> str | None:
    """What is left once no thinking is; None where the last block never closes. Some models think twice in a row."""
    rest = _after(text)
    while rest is not None and rest != text:
        text, rest = rest, _after(rest)
    return rest


def _after(text: str) -> str | None:
    """The text behind its first thinking, stripped; the text as it is without any; None where it does not end."""
    seen = _QUOTED.sub(lambda quoted: "\0" * len(quoted[0]), text)  # as long as before, so places stay the same
    start = len(seen) - len(seen.lstrip())
    for opening, closing in TAGS:
        if seen.startswith(opening, start):
            end = seen.rfind(closing, start)
            return None if end < 0 else text[end + len(closing) :].strip()
    for opening, closing in TAGS:
        opened = seen.find(opening)
        end = seen.rfind(closing, 0, len(seen) if opened < 0 else opened)
        if end >= 0:
            return text[end + len(closing) :].strip()
    return text
