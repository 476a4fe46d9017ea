"""Names of fine-tuning methods: ``<scope>[+word...]``. No torch here.

A scope says where to train: the name of a plan's selector (``full``, ``salf``...), whose boundary it takes;
``freeze-<k>``, with layers 1..k frozen (``freeze-0`` is the scope of ``full``); ``first-n`` or ``lisa``. ``race`` has
no scope of its own: it trains several methods and keeps the one that wins.
A word says how. It fills one of five slots, a few fill two, and a name has at most one word per slot, in the slots'
order.
A slot without a word has its plain one, which is never written. ``lora`` alone is ``full+lora``. With ``answer``, what
trains acts at the positions after a prompt's data alone: :mod:`salf.split_point`.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Final

from salf.cost import Technique

FIRST_N: Final = "first-n"
LISA: Final = "lisa"
RACE: Final = "race"

_FREEZE: Final = re.compile(r"freeze-(0|[1-9][0-9]*)")


@dataclass(frozen=True)
class Word:
    """A technique: one entry of :data:`WORDS` is all that registers it.

    ``made_by`` (``module:name``) implements it and is imported when training starts. The slots' types are in
    :mod:`salf.engine.training.step` and :mod:`salf.engine.training.forms`.
    """

    name: str
    slot: str
    made_by: str
    also: Mapping[str, str] = field(default_factory=dict)  # further slots that it fills, and what implements it there
    trains: str = ""  # what the model card says that it trains
    layers_alone: bool = False  # embeddings, final norm and head stay as they are, so that layers have to train
    counted_as: Technique = "weights"  # how the cost model counts its steps
    averages: bool = True  # a mean of what trains is the mean of the weights
    not_with: tuple[str, ...] = ()  # scopes that it cannot be combined with
    fits: tuple[str, ...] | None = None  # the only words that it can be combined with; ``None``: all

    @property
    def slots(self) -> tuple[str, ...]:
        """All slots that it fills."""
        return (self.slot, *self.also)

    def implementation(self, slot: str | None = None) -> Any:
        """Import what implements it, in one of its slots or in its own."""
        return resolve_name(self.also.get(slot or self.slot, self.made_by))


SLOTS: Final = ("positions", "form", "objective", "gradient", "update")
# The first word of a slot is its plain one.
WORDS: Final = {
    word.name: word
    for word in (
        Word("all", "positions", "salf.engine.answers:training_states"),
        Word("answer", "positions", "salf.engine.answers:training_states", not_with=(FIRST_N, LISA), fits=("lora",)),
        Word("weights", "form", "salf.engine.training.forms:Weights", trains="the weights themselves"),
        Word(
            "lora",
            "form",
            "salf.engine.training.forms:Lora",
            trains="LoRA adapters, merged into the weights",
            layers_alone=True,
            counted_as="lora",
            averages=False,
            not_with=(FIRST_N, LISA),
        ),
        Word("cross-entropy", "objective", "salf.engine.training.step:CrossEntropy"),
        Word("backward", "gradient", "salf.engine.training.step:backward"),
        Word("adamw", "update", "salf.engine.training.step:adamw"),
    )
}
_PLAIN: Final = {slot: next(word for word in WORDS.values() if word.slot == slot) for slot in SLOTS}


@dataclass(frozen=True)
class Method:
    """A method's scope, and its words: one per slot that is not plain, in the slots' order."""

    scope: str
    words: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in full; ``lora`` for ``full+lora``."""
        return "lora" if self == Method("full", ("lora",)) else "+".join((self.scope, *self.words))

    @property
    def form(self) -> Word:
        """The form: which numbers train and how they enter the forward pass."""
        return self.word("form")

    @property
    def answer_side(self) -> bool:
        """Whether trained weights act at the positions after the prompts' data alone."""
        return self.word("positions").name == "answer"

    def word(self, slot: str) -> Word:
        """The word in a slot."""
        return next((WORDS[name] for name in self.words if slot in WORDS[name].slots), _PLAIN[slot])

    @property
    def trains(self) -> str:
        """The trained parts, in words."""
        what, _, _ = self.form.trains.partition(",")  # nothing is merged
        return f"{what}, at the positions after the prompts' data alone" if self.answer_side else self.form.trains

    @property
    def boundary(self) -> int | None:
        """The last frozen layer as far as the name tells; ``None`` where a plan's selector decides."""
        known = {"full": 0, FIRST_N: 0, LISA: 0}
        return known[self.scope] if self.scope in known else frozen_by_name(self.scope)


def method_of(name: str) -> Method:
    """The method of a name; whether its scope and words are known is not looked at."""
    scope, *words = ("full+lora" if name == "lora" else name).split("+")
    return Method(scope, tuple(words))


def frozen_by_name(scope: str) -> int | None:
    """The k of ``freeze-<k>``; ``None`` for any other scope."""
    found = _FREEZE.fullmatch(scope)
    return int(found[1]) if found else None


def checked(name: str, selectors: Collection[str]) -> str:
    """The name, if it is one; otherwise a ``ValueError`` says what is allowed."""
    if name == RACE:
        return name
    method = method_of(name)
    known = method.scope in {*selectors, FIRST_N, LISA} or frozen_by_name(method.scope) is not None
    places_of = {name: SLOTS.index(word.slot) for name, word in WORDS.items() if word != _PLAIN[word.slot]}
    places = [places_of[word] for word in method.words if word in places_of]
    if not known or len(places) < len(method.words) or places != sorted(set(places)):
        spoken = ", ".join(f"+{word}" for word in places_of)
        raise ValueError(
            f"no such method; allowed: a selector ({', '.join(selectors)}) or freeze-<k> (layers 1 to k frozen), "
            f"each alone or with {spoken}; lora (short for full+lora); {FIRST_N}; {LISA}; {RACE}"
        )
    filled = Counter(slot for word in method.words for slot in WORDS[word].slots)
    if twice := [slot for slot, count in filled.items() if count > 1]:
        both = " and ".join(word for word in method.words if twice[0] in WORDS[word].slots)
        raise ValueError(f"{both} both decide the {twice[0]}: leave one out")
    for word in method.words:
        if method.scope in WORDS[word].not_with:
            raise ValueError(f"{method.scope} cannot be combined with {word}: leave out +{word}")
        fits = WORDS[word].fits
        if fits is not None and (others := [other for other in method.words if other not in (word, *fits)]):
            raise ValueError(f"{others[0]} has not been shown to work with {word}: leave out +{others[0]}")
    return name


def rate_entry(name: str, boundary: int, entries: Collection[str]) -> str | None:
    """The entry of ``finetune.learning_rate`` that a method uses, given its boundary; ``None``: there is none.

    Its own, otherwise that of ``full`` (nothing frozen) or ``salf`` with the same positions and form: ``lora`` and
    ``salf+lora`` with adapters. Words in other slots change what a rate means, so they have no stand-in.
    """
    method = method_of(name)
    wanted = [method]
    if all(WORDS[word].slot in ("positions", "form") for word in method.words):
        wanted.append(Method("salf" if boundary else "full", method.words))
    return next((entry for each in wanted for entry in entries if method_of(entry) == each), None)
