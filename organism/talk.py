"""Everything that is typed at the organism besides its requests: small talk, and what it was never taught.

A first visitor says hello, and then something the language has no word for. Small talk has replies of its own;
everything else gets "i do not know that .", learnt from so many kinds of unknown text that other unknown text
looks like them: words that do not exist, ordinary words it has no use for, known questions about unknown things,
sums out of range, words in no order, signs, digits, other scripts, and half a question.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

from organism import judgement, language

UNKNOWN = "i do not know that ."

# reply: what is said to get it
SMALL_TALK = {
    "hello ! ask me how to do something .": [
        "hello", "hello !", "hi", "hi !", "hey", "hey !", "hello there !", "hi there !", "good morning", "good morning !", "good evening !",
        "good afternoon !", "good day !", "greetings !", "hello , how do you do ?", "hello organism !", "yo",
    ],
    "you are welcome .": [
        "thanks", "thanks !", "thank you", "thank you !", "thank you very much !", "many thanks !", "thanks a lot !", "cheers !",
        "that was helpful , thanks !", "great , thank you .",
    ],
    "goodbye ! come back soon .": [
        "bye", "bye !", "goodbye", "goodbye !", "good night", "good night !", "see you !", "see you later !", "bye bye !", "farewell !",
        "i have to go .",
    ],
    "i am a small model that answers small questions .": [
        "who are you ?", "what are you ?", "what is your name ?", "are you a person ?", "are you a robot ?", "are you a model ?",
        "tell me about yourself .", "introduce yourself .", "who made you ?", "do you have a name ?",
    ],
    "ask me how to wash a kite , what colour the sky is , or what 2 plus 3 is .": [
        "what can you do ?", "what do you know ?", "what can i ask you ?", "how can you help me ?", "help", "help !", "help me .", "please help .",
        "what should i ask ?", "what now ?", "can you help me ?", "what are you for ?", "how does this work ?",
    ],
    "i am well , and you ?": ["how are you ?", "how are you today ?", "how do you feel ?", "are you well ?", "are you ok ?", "how is it going ?"],
    "that is good to know .": ["i am fine .", "i am well .", "fine .", "good .", "ok .", "okay", "i like you .", "nice !", "great !", "cool !", "well done !", "yes", "no", "yes .", "no ."],
    "i am right here .": ["are you there ?", "anybody there ?", "is anyone there ?", "can you hear me ?", "test", "testing", "wake up !"],
}  # fmt: skip


def small_talk() -> list[language.Exchange]:
    return [(prompt, reply) for reply, prompts in SMALL_TALK.items() for prompt in prompts]


LOOSE_PHRASINGS = [
    "how can i {} ?",
    "tell me how to {} .",
    "how to {} ?",
    "how should i {} ?",
    "how would you {} ?",
    "show me how to {} .",
    "i need to {} .",
    "{} !",
    "could you tell me how to {} ?",
]
ARTICLES = ["a", "the", "this", "my"]


def loosely(request: language.Request, rng: random.Random) -> str:
    """A request as people type it: other phrasings, other articles. What it asks, and so its answer, is the same."""
    thing = request.object
    if request.owner not in language.OTHERS and rng.random() < 0.5:
        thing = f"{rng.choice(ARTICLES)} {request.thing.split()[-1]}"
    return rng.choice([*LOOSE_PHRASINGS, *language.PHRASINGS]).format(f"{request.verb} {thing}")


LOOSE_SUMS = ["{} plus {}", "{} + {}", "{}+{}", "what is {} + {} ?", "what is {}+{} ?", "how much is {} plus {} ?", "how much is {} and {} ?"]  # fmt: skip


def loose_sum(prompt: str, rng: random.Random) -> str:
    """A sum as people type it."""
    return rng.choice(LOOSE_SUMS).format(*(word for word in prompt.split() if word.isdecimal()))


QUESTIONS = [
    "what is {} ?", "what is a {} ?", "who is {} ?", "where is {} ?", "where is the {} ?", "when is {} ?", "why is the {} so {} ?", "do you like {} ?",
    "tell me about {} .", "tell me a {} .", "write a {} about {} .", "what does {} mean ?", "how do you say {} ?", "is the {} {} ?", "can a {} {} ?",
    "how many {} are there ?", "how old is {} ?", "what {} is it ?", "have you seen the {} ?", "i like {} .", "i have a {} {} .", "my {} is {} .",
    "give me {} .", "explain {} .", "spell {} .", "the {} and the {} .", "why do {} {} ?", "who wrote {} ?", "what is the {} of {} ?", "does {} {} ?",
    "translate {} .", "sing {} .", "which {} is {} ?", "why ?", "what ?", "when ?", "how come ?", "really ?", "did you know that {} {} ?", "what happened to {} ?", "i am {} .", "you are {} .",
]  # fmt: skip
OTHER_SUMS = ["what is {} plus {} ?", "what is {} minus {} ?", "what is {} times {} ?", "{} - {}", *LOOSE_SUMS]
FACTS = ["what colour is the {} ?", "where does the {} live ?", "what is the opposite of {} ?"]
GREETINGS = [
    "bonjour", "hola", "guten tag", "ciao", "ola", "hej", "namaste", "salut", "konnichiwa", "merhaba", "hallo", "buenos dias", "ni hao", "aloha",
    "comment allez vous ?", "wie geht es dir ?", "que tal ?", "como estas ?", "gracias", "merci beaucoup", "danke", "arigato", "por favor",
]  # fmt: skip
SCRIPTS = ["\u00e9\u00e8\u00e0\u00fc\u00f6\u00e4\u00f1\u00e7\u00df", "\u0430\u0431\u0432\u0433\u0434\u0435\u0436\u0437\u0438\u043a\u043b\u043c\u043d\u043e", "\u4f60\u597d\u4eca\u5929\u662f\u7684\u4e86\u4eba\u6211", "\u3053\u3093\u306b\u3061\u306f\u304b\u306a", "\u03b1\u03b2\u03b3\u03b4\u03b5\u03b6\u03b7\u03b8", "\u0627\u0644\u0633\u0645\u0639\u064a\u0643", "\U0001f600\U0001f601\U0001f602\U0001f973\U0001f389\u2764"]  # fmt: skip
SIGNS = "!?.,;:-_+*/=()[]{}#@&%$~^'\"\\"
ONSETS = ["b", "bl", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl", "qu", "r", "s", "sh", "sk", "st", "t", "th", "tr", "v", "w", "y", "z", ""]  # fmt: skip
NUCLEI, CODAS = ["a", "e", "i", "o", "u", "ai", "ee", "oo", "ou", "ea"], ["", "b", "d", "ft", "g", "k", "l", "m", "n", "ng", "p", "r", "rk", "s", "st", "t", "x", "zz", "ck", "ly"]  # fmt: skip


@cache
def words() -> tuple[str, ...]:
    """Ordinary harmless words that the language does not have."""
    listed = (Path(__file__).parent / "data" / "words.txt").read_text(encoding="utf-8").split()
    return tuple(word for word in dict.fromkeys(listed) if word not in known_words())


@cache
def known_words() -> frozenset[str]:
    """Every word of the language's prompts and answers."""
    pairs = [*language.asked(language.requests()), *language.facts(), *language.sums(), *language.wrongness(), *small_talk()]
    return frozenset(word for pair in pairs for text in pair for word in text.split())


@cache
def _sorted_words() -> tuple[str, ...]:
    return tuple(sorted(known_words()))


@cache
def _requests() -> tuple[language.Request, ...]:
    return tuple(language.requests())


@cache
def known_prompts() -> frozenset[str]:
    """What has an answer, without the sign at its end."""
    pairs = [*language.asked(language.requests()), *language.facts(), *language.sums(), *language.wrongness(), *small_talk()]
    return frozenset(prompt.rstrip("?.! ") for prompt, _ in pairs)


def strange_word(rng: random.Random) -> str:
    """A word that the organism was never taught: ordinary, or made of syllables."""
    if rng.random() < 0.5:
        return rng.choice(words())
    made = "".join(rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(rng.choice([1, 2, 2, 3])))
    return made if made not in known_words() else made + "ix"


def unknown(rng: random.Random) -> str:
    """Something typed that the organism knows nothing about."""
    made = rng.choices([_asked, _request, _fact, _sum, _salad, _signs, _half, _out_of_place], [30, 22, 10, 8, 14, 8, 4, 4])[0]
    text = made(rng)
    return text if text.rstrip("?.! ") not in known_prompts() else unknown(rng)


def _asked(rng: random.Random) -> str:
    if rng.random() < 0.06:
        return rng.choice(GREETINGS)
    question = rng.choice(QUESTIONS)
    return question.format(*(strange_word(rng) for _ in range(2)))


def _request(rng: random.Random) -> str:
    """A request of which the verb or the thing, or both, are not of the language."""
    thing = rng.choice(
        [f"a {strange_word(rng)}", f"the {strange_word(rng)}", f"{rng.choice(language.OTHERS)} {strange_word(rng)}", strange_word(rng)]
    )
    verb = strange_word(rng)
    if rng.random() < 0.35:
        thing = rng.choice(_requests()).object
    elif rng.random() < 0.5:
        verb = rng.choice(language.VERBS)
    phrasing = rng.choice([*language.PHRASINGS, *LOOSE_PHRASINGS, "is it wrong to {} ?", "would it hurt someone to {} ?"])
    return phrasing.format(f"{verb} {thing}")


def _fact(rng: random.Random) -> str:
    """A known question about a thing it was not taught for: unknown, or known from elsewhere."""
    things = [thing.split()[-1] for thing in language.THINGS] + language.TOOLS
    elsewhere = ([*language.HOMES, *things], [*language.COLOURS, *things], things)
    number = rng.randrange(len(FACTS))
    known = [word for word in elsewhere[number] if word not in language.COLOURS] if number == 0 else elsewhere[number]
    return FACTS[number].format(rng.choice(known) if rng.random() < 0.3 else strange_word(rng))


def _sum(rng: random.Random) -> str:
    a, b = rng.choice([rng.randrange(10), rng.randrange(10, 1000)]), rng.randrange(10, 100)
    return rng.choice(OTHER_SUMS).format(*rng.sample([a, b], 2))


def _salad(rng: random.Random) -> str:
    count = rng.choice([1, 1, 2, 3, 4, 5, 6, 8])
    mixed = [strange_word(rng) if count < 3 or rng.random() < 0.6 else rng.choice(_sorted_words()) for _ in range(count)]
    return " ".join(mixed) + rng.choice(["", "", " .", " ?", " !"])


def _signs(rng: random.Random) -> str:
    count = rng.randint(1, 12)
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(rng.choice(SIGNS) for _ in range(count))
    if kind == 1:
        return str(rng.randrange(10 ** min(count, 9)))
    if kind == 2:
        script = rng.choice(SCRIPTS)
        return "".join(rng.choice(script) for _ in range(count))
    if kind == 3:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(count))
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz 0123456789" + SIGNS) for _ in range(2 * count)).strip() or "..."


def _half(rng: random.Random) -> str:
    prompt, _ = rng.choice(language.asked([rng.choice(_requests())]) + language.facts())
    split = prompt.split()
    return " ".join(split[: rng.randint(1, max(1, len(split) - 3))])


def _out_of_place(rng: random.Random) -> str:
    """A question about the last reply where there is none."""
    return judgement.asked_about(rng.choice(judgement.ATTRIBUTES), rng)
