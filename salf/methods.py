"""Names of fine-tuning methods: ``<scope>[+word...]``. No torch here.

A scope says where to train: the name of a plan's selector (``full``, ``salf``...), whose boundary it takes;
``freeze-<k>``, with layers 1..k frozen (``freeze-0`` is the scope of ``full``); or an entry of :data:`SCOPES`.
``race`` has no scope of its own: it trains several methods and keeps the one that wins.
A word says how. It fills one of five slots, a few fill two, and a name has at most one word per slot, in the slots'
order.
A slot without a word has its plain one, which is never written. ``lora`` alone is ``full+lora``. With ``answer``, what
trains acts at the positions after a prompt's data alone: :mod:`salf.split_point`.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pkgutil import resolve_name
from typing import Any, Final, NamedTuple

from salf.cost import PLAIN, Flops, Sums, Technique, adapters, interactions, together
from salf.hadamard import rotation_flops
from salf.shape import ModelShape

RACE: Final = "race"

_FREEZE: Final = re.compile(r"freeze-(0|[1-9][0-9]*)")


class OwnScope(NamedTuple):
    """A scope that trains something else than everything above a boundary: one entry of :data:`SCOPES` registers it.

    ``made_by`` (``module:name``) takes the model's number of layers, the group ``finetune``, the seed, and the number
    of layers that a plan trains; it returns a :class:`salf.engine.training.scope.Scope`.
    """

    made_by: str
    settings: str = ""  # how its settings in the group ``finetune`` begin


SCOPES: Final = {
    "first-n": OwnScope("salf.engine.training.scope:first_layers"),
    "lisa": OwnScope("salf.engine.training.scope:drawn_layers", settings="lisa_"),
}


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
    technique: Callable[[Any], Technique] = lambda _: PLAIN  # its work and memory, given the group ``finetune``
    settings: str = ""  # how its settings in the group ``finetune`` begin; a group of their own has this name
    neutral: Mapping[str, Any] | None = None  # settings of that group with which it changes no training
    inherits_rate: bool = True  # without a learning rate of its own, it takes that of the method without it
    needs: tuple[str, ...] = ()  # words, one of which it needs
    # What it cannot be combined with, and why: scopes, words, all words of a slot, tasks, flags and values of
    # ``finetune``, and traits of models (:attr:`salf.shape.ModelShape.traits`).
    refused: Mapping[str, str] = field(default_factory=dict)
    fits: tuple[str, ...] | None = None  # the only words that it can be combined with; ``None``: all
    counts_steps: bool = False  # it trains for the ``steps`` of its group, in place of epochs
    trains: str = ""  # what the model card says that it trains
    layers_alone: bool = False  # embeddings, final norm and head stay as they are, so that layers have to train
    shortens: bool = False  # the model reads prompts without what all of them begin with
    classes: bool = False  # answers are classes, not words

    @property
    def slots(self) -> tuple[str, ...]:
        """All slots that it fills."""
        return (self.slot, *self.also)

    def implementation(self, slot: str | None = None) -> Any:
        """Import what implements it, in one of its slots or in its own."""
        return resolve_name(self.also.get(slot or self.slot, self.made_by))


def _ahead(settings: Any, direction: str) -> Technique:
    """Extrapolation keeps the weights, and the past gradient; a fresh gradient takes a second pass."""
    until = settings.extrapolation.until
    return Technique(early=1 + (direction == "fresh"), until=until, kept=4 + (direction == "past"))


def _on_grids(settings: Any) -> Technique:
    """Quantised copies of the weights, and rotations, counted as if every site were rotated."""
    asked = settings.roste
    rotations = partial(rotation_flops, keys_values=asked.kv_bits is not None)
    return Technique(extra=(rotations,) if asked.rotation != "none" else (), kept=4)


_PACE: Final[dict[str, Any]] = {
    "settings": "pace",
    "neutral": {"sigma": 0.0, "strength": 0.0},
    "needs": ("lora",),
    "refused": {"gradient": "its noise and its term have been shown with back-propagation alone"},
}


def _feedback(settings: Any) -> Technique:
    """Direct feedback multiplies the error at answer positions by a random matrix, unless no layer gets the product."""

    def product(shape: ModelShape, boundary: int, sums: Sums) -> Flops:
        sent = settings.dfa.feedback == "random" and shape.layers - boundary > (settings.dfa.last == "exact")
        return Flops(backward=sent * 2 * shape.hidden**2 * sums.positions)

    return Technique(extra=(product,))


def _zeroth_order(name: str, update: str, rank: Callable[[Any], int]) -> "Word":
    """A word that moves weights by the losses of two forward passes along directions of a ``rank``; 0: dense."""
    steps = Technique(passes=2, inputs=False, weights=False, kept=0, activations=0)
    module = "salf.engine.techniques.zeroth_order"
    return Word(
        name,
        "gradient",
        f"{module}:forward_only",
        also={"update": f"{module}:{update}"},
        technique=lambda settings: replace(steps, directions=rank(settings.lozo)),
        settings="lozo",
        inherits_rate=False,
        refused={
            **dict.fromkeys(SCOPES, _NO_BOUNDARY),
            "padded": "such layers may use weights outside the modules that hold them",
        },
        fits=("answer", "lora"),
        counts_steps=True,
    )


_NO_BOUNDARY: Final = "it acts above a boundary, and this scope has none"
_SHORT: Final = "its prompts are short, and dropping tokens pays from about 500 on"
_NO_MEAN: Final = "the mean of low-rank factors is not the factor of the mean"

SLOTS: Final = ("positions", "form", "objective", "gradient", "update")
# The first word of a slot is its plain one.
WORDS: Final = {
    word.name: word
    for word in (
        Word("all", "positions", "salf.engine.answers:training_states"),
        Word(
            "answer",
            "positions",
            "salf.engine.answers:training_states",
            settings="answer_side",
            inherits_rate=False,
            refused={**dict.fromkeys(SCOPES, _NO_BOUNDARY), "text": "its documents have neither prompt nor answer"},
            fits=("lora", "lozo", "lozo-m", "mezo"),
        ),
        Word("weights", "form", "salf.engine.training.forms:Weights", trains="the weights themselves"),
        Word(
            "lora",
            "form",
            "salf.engine.training.forms:Lora",
            technique=lambda settings: adapters(settings.lora_rank),
            settings="lora_",
            inherits_rate=False,
            refused={**dict.fromkeys(SCOPES, _NO_BOUNDARY), "mean": _NO_MEAN, "ema": _NO_MEAN},
            trains="LoRA adapters, merged into the weights",
            layers_alone=True,
        ),
        Word(
            "head",
            "form",
            "salf.engine.techniques.head:ClassWeights",
            settings="head",
            neutral={"init": "words"},  # if every word of the vocabulary is a label
            refused={
                "first-n": "it leaves the final norm and the head as they are",
                **dict.fromkeys(("multiple-choice", "free", "text"), "its answers are no classes"),
            },
            fits=(),
            trains="the weights themselves, and a class head that reads a prompt's last state "
            "(`AutoModelForSequenceClassification` opens the folder)",
            classes=True,
        ),
        Word(
            "sift",
            "form",
            "salf.engine.techniques.sift:Sift",
            technique=lambda settings: Technique(matrices_alone=True, share=settings.sift.share, kept=5),
            settings="sift",
            neutral={"share": 1.0},
            refused={"lisa": "entries are chosen once, for layers that train all the time"},
            trains="a share of the entries of every matrix in the layers, chosen before the first step",
            layers_alone=True,
        ),
        Word(
            "roste",
            "form",
            "salf.engine.techniques.roste:Quantised",
            technique=_on_grids,
            settings="roste",
            neutral={"weight_bits": None, "activation_bits": None, "kv_bits": None, "rotation": "none"},
            refused={
                "experts": "they are held in one tensor, whose inputs no rotation reaches",
                "padded": "its attention does not hand over keys and values",
            },
            trains="the weights, under quantisation (`salf.quantised(model, folder)` computes as in training; "
            "transformers alone opens the weights at full precision)",
        ),
        Word(
            "dcp",
            "form",
            "salf.engine.techniques.dcp:Pruned",
            also={"objective": "salf.engine.techniques.dcp:Sparse"},
            technique=lambda settings: Technique(extra=(partial(interactions, width=settings.dcp.width),), pairs=5),
            settings="dcp",
            neutral={"bias": 1e6, "strength": 0.0},
            refused={
                **dict.fromkeys(SCOPES, _NO_BOUNDARY),
                **dict.fromkeys(("classification", "multiple-choice", "free"), _SHORT),
                "gradient": "its term has been shown with back-propagation alone",
                "gradient_checkpointing": "its term reads what layers decide in their first pass",
                "padded": "its attention does not hand over keys and values",
            },
            trains="the weights, and which earlier tokens each layer drops (`salf.pruned(model, folder)` computes as "
            "in training; transformers alone drops nothing)",
        ),
        Word("cross-entropy", "objective", "salf.engine.training.step:CrossEntropy"),
        Word(
            "pace",
            "objective",
            "salf.engine.techniques.pace:Pace",
            technique=lambda settings: Technique(passes=2, activations=2) if settings.pace.strength else PLAIN,
            **_PACE,
        ),
        Word("pace-lazy", "objective", "salf.engine.techniques.pace:PaceLazy", **_PACE),
        Word("pace-fast", "objective", "salf.engine.techniques.pace:PaceFast", **_PACE),
        Word(
            "distill",
            "objective",
            "salf.engine.techniques.distill:Distill",
            technique=lambda _: Technique(teacher=True),
            settings="distill",
            neutral={"weight": 0.0},
            refused={
                "text": "its documents have no prompts",
                "chat_template": "what all prompts begin with holds the marks of a turn",
            },
            shortens=True,
        ),
        Word("backward", "gradient", "salf.engine.training.step:back_propagation"),
        Word(
            "dfa",
            "gradient",
            "salf.engine.techniques.dfa:DirectFeedback",
            technique=_feedback,
            settings="dfa",
            neutral={"last": "exact"},  # of one trained layer
            refused={"padded": "its error has a row for each answer position"},
        ),
        _zeroth_order("lozo", "ZerothOrder", lambda own: own.rank),
        _zeroth_order("lozo-m", "with_momentum", lambda own: own.rank),
        _zeroth_order("mezo", "ZerothOrder", lambda _: 0),
        Word("adamw", "update", "salf.engine.training.step:adamw"),
        Word(
            "extrap",
            "update",
            "salf.engine.techniques.extrap:Extrapolated",
            technique=lambda settings: _ahead(settings, settings.extrapolation.direction),
            settings="extrapolation",
            neutral={"factor": 0.0},
        ),
        Word(
            "extragradient",
            "update",
            "salf.engine.techniques.extrap:extragradient",
            technique=lambda settings: _ahead(settings, "fresh"),
            settings="extrapolation",
            neutral={"factor": 0.0},
        ),
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

    @property
    def shortened(self) -> bool:
        """Whether it trains, and answers, on prompts without what all of them begin with."""
        return any(WORDS[name].shortens for name in self.words)

    def word(self, slot: str) -> Word:
        """The word in a slot."""
        return next((WORDS[name] for name in self.words if slot in WORDS[name].slots), _PLAIN[slot])

    @property
    def slot(self) -> str:
        """The last slot that is not plain; empty where all are."""
        return WORDS[self.words[-1]].slot if self.words else ""

    @property
    def trains(self) -> str:
        """The trained parts, in words."""
        what, _, _ = self.form.trains.partition(",")  # nothing is merged
        return f"{what}, at the positions after the prompts' data alone" if self.answer_side else self.form.trains

    @property
    def boundary(self) -> int | None:
        """The last frozen layer as far as the name tells; ``None`` where a plan's selector decides."""
        return 0 if self.scope in ("full", *SCOPES) else frozen_by_name(self.scope)

    @property
    def counts_steps(self) -> bool:
        """Whether it trains for steps of its own."""
        return any(WORDS[name].counts_steps for name in self.words)

    def technique(self, settings: Any) -> Technique:
        """The declared work and memory of its words together, given the group ``finetune``."""
        return together([word.technique(settings) for slot in SLOTS if (word := self.word(slot)).slot == slot])

    def refusal(self, facts: Mapping[str, str] | None = None) -> str | None:
        """Why its words do not fit, if they do not.

        ``facts``: what is true of a run, by the names in :attr:`Word.refused`, and how messages call it.
        """
        for word in (WORDS[name] for name in self.words):
            others = [WORDS[name] for name in self.words if name != word.name]
            if word.needs and not set(word.needs) & set(self.words):
                return f"{word.name} needs {' or '.join(word.needs)}: add +{word.needs[0]}"
            unfit = [other.name for other in others if word.fits is not None and other.name not in word.fits]
            if unfit:
                return f"{unfit[0]} has not been shown to work with {word.name}: leave out +{unfit[0]}"
            known = {self.scope: self.scope, **(facts or {})}
            known |= {key: other.name for other in others for key in (other.name, *other.slots)}
            for key in (key for key in word.refused if key in known):
                return f"{known[key]} cannot be combined with {word.name}: {word.refused[key]}; leave out +{word.name}"
        return None


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
    known = method.scope in {*selectors, *SCOPES} or frozen_by_name(method.scope) is not None
    spoken = {name for name, word in WORDS.items() if word != _PLAIN[word.slot]}
    if not known or not spoken.issuperset(method.words):
        raise ValueError(
            f"no such method; allowed: a selector ({', '.join(selectors)}) or freeze-<k> (layers 1 to k frozen), "
            f"each alone or with {', '.join(f'+{word}' for word in WORDS if word in spoken)}; lora (short for "
            f"full+lora); {'; '.join(SCOPES)}; {RACE}"
        )
    filled = Counter(slot for word in method.words for slot in WORDS[word].slots)
    if twice := [slot for slot, count in filled.items() if count > 1]:
        both = " and ".join(word for word in method.words if twice[0] in WORDS[word].slots)
        raise ValueError(f"{both} both decide the {twice[0]}: leave one out")
    ordered = sorted(method.words, key=lambda word: SLOTS.index(WORDS[word].slot))
    if ordered != list(method.words):
        raise ValueError(f"no such method: words have an order; write {'+'.join((method.scope, *ordered))}")
    if why := method.refusal():
        raise ValueError(why)
    return name


def rate_entry(name: str, boundary: int, entries: Collection[str]) -> str | None:
    """The entry of ``finetune.learning_rate`` that a method uses, given its boundary; ``None``: there is none.

    Its own; otherwise that of ``full`` (nothing frozen) or ``salf`` with the same words; otherwise the same two without
    the words that inherit a rate. Of ``half+lora+pace``, in this order: ``half+lora+pace``, ``salf+lora+pace``,
    ``half+lora``, ``salf+lora``.
    """
    method = method_of(name)
    ruling = tuple(word for word in method.words if not WORDS[word].inherits_rate)
    scopes = (method.scope, "salf" if boundary else "full")
    wanted = [Method(scope, words) for words in (method.words, ruling) for scope in scopes]
    return next((entry for each in wanted for entry in entries if method_of(entry) == each), None)
