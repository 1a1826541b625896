"""Made-up knowledge: task `lang` (translate to Velish) and task `kb` (facts about made-up countries)."""

from premoe_local.tasks.draw import Draw
from premoe_local.tasks.example import Generator, Payload

_SYLLABLES = [
    "ka",
    "vo",
    "mi",
    "ru",
    "te",
    "lo",
    "shi",
    "bra",
    "zen",
    "dor",
    "qui",
    "pal",
    "fen",
    "gus",
    "hil",
    "nor",
    "wex",
    "yub",
    "jat",
    "cim",
    "tul",
    "ose",
    "rak",
    "ped",
]
_NOUNS = [
    "dog",
    "cat",
    "king",
    "house",
    "river",
    "tree",
    "bird",
    "child",
    "farmer",
    "ship",
    "stone",
    "horse",
    "soldier",
    "garden",
    "letter",
    "tower",
    "baker",
    "wolf",
]
_ADJECTIVES = ["red", "small", "old", "green", "happy", "strong", "quiet", "young"]
_VERBS = ["sees", "finds", "loves", "follows", "helps", "builds", "fears", "carries"]
_NUMBERS = ["one", "two", "three", "four", "five"]
_ATTRIBUTES = ("capital", "river", "king")
_PLURAL = "im"


def _new_words(draw: Draw, count: int, syllables: int, used: set[str]) -> list[str]:
    words: list[str] = []
    while len(words) < count:
        word = "".join(draw.pick(_SYLLABLES) for _ in range(syllables))
        if word not in used:
            used.add(word)
            words.append(word)
    return words


def _build() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """The dictionary of Velish and the 360 facts; fixed, so that every process knows the same ones."""
    draw = Draw("velish")
    used: set[str] = set()
    english = _NOUNS + _ADJECTIVES + _VERBS + _NUMBERS
    dictionary = dict(zip(english, _new_words(draw, len(english), 2, used), strict=True))
    countries = _new_words(draw, 120, 3, used)
    values = _new_words(draw, 80, 2, used)
    facts = {(country, attribute): draw.pick(values) for country in countries for attribute in _ATTRIBUTES}
    return dictionary, facts


DICTIONARY, FACTS = _build()
_FACT_KEYS = tuple(FACTS)


def _noun_phrase(draw: Draw) -> tuple[str, str]:
    """A noun phrase in English and in Velish, where adjective and number follow the noun."""
    number = draw.pick(_NUMBERS) if draw.chance(0.7) else ""
    adjective = draw.pick(_ADJECTIVES) if draw.chance(0.6) else ""
    noun = draw.pick(_NOUNS)
    plural = number not in ("", "one")
    english = [number or "the", adjective, noun + ("s" if plural else "")]
    velish = [DICTIONARY[noun] + (_PLURAL if plural else "")]
    velish += [DICTIONARY[word] for word in (adjective, number) if word]
    return " ".join(filter(None, english)), " ".join(velish)


def _lang(draw: Draw) -> Payload:
    subject, subject_velish = _noun_phrase(draw)
    target, target_velish = _noun_phrase(draw)
    verb = draw.pick(_VERBS)
    sentence = f"{subject} {verb} {target}"
    return Payload(sentence, {"s": sentence}, f"{subject_velish} {target_velish} {DICTIONARY[verb]}")


def _kb(draw: Draw) -> Payload:
    country, attribute = draw.pick(_FACT_KEYS)
    return Payload("", {"e": country, "a": attribute}, FACTS[country, attribute])


LANG = Generator(
    _lang,
    seen=(
        "Translate to Velish: {s}",
        "How do you say '{s}' in Velish?",
        "Put into Velish: {s}",
        "A Velish speaker would say what for: {s}",
        "My Velish friend must understand this: {s}",
        "Write '{s}' in the Velish language.",
        "English: {s}\nVelish:",
        "Say in Velish: {s}",
        "{s} -- in Velish, please.",
        "Velish for '{s}'?",
        "Turn this sentence into Velish: {s}",
    ),
    unseen=(
        "Give the Velish for: {s}",
        "What is '{s}' in Velish?",
        "Please translate into Velish: {s}",
        "Speak Velish: {s}",
        "The sentence '{s}' in the Velish tongue?",
    ),
)

KB = Generator(
    _kb,
    seen=(
        "What is the {a} of {e}?",
        "{e} is a country. Name its {a}.",
        "The {a} of {e} is called?",
        "I travel to {e}. What is its {a}?",
        "Geography quiz: {a} of {e}?",
        "Do you know the {a} of {e}?",
        "{e}: {a}?",
        "Tell me the {a} of the country {e}.",
        "Which {a} does {e} have?",
        "Name the {a} of {e}.",
        "In {e}, which is the {a}?",
    ),
    unseen=(
        "What {a} has the country {e}?",
        "Say the name of the {a} of {e}.",
        "The country {e} has which {a}?",
        "Quiz: name {e}'s {a}.",
        "Which is the {a} of {e}?",
    ),
)
