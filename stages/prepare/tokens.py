"""From prompts and answers to token ids, with the model's own tokenizer: neither torch nor transformers is needed."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from os.path import commonprefix
from pathlib import Path
from typing import Any, Final

from tokenizers import Encoding, Tokenizer

from salf.blocks import block_id, cut_blocks, start_of
from salf.errors import UserError
from salf.files import read_json, require
from stages.prepare.chat import ChatTemplate
from stages.prepare.rows import Example

_PROBES: Final = 64  # prompts on which the tokens of a label word are looked up
_BATCH: Final = 256  # texts tokenised at a time, whose offsets take more memory than their ids


@dataclass(frozen=True, slots=True)
class Tokenised:
    """An example's token ids, BOS included."""

    example: Example
    prompt_ids: list[int]
    answer_ids: list[int]
    cut: bool  # its prompt was cut from the left
    candidate_ids: tuple[list[int], ...] = ()
    field_end: int = 0  # tokens of its prompt that lie within the characters ``example.field_end``
    turn_end: int | None = None  # the same of ``example.turn_end``; ``None`` without a chat template
    merged: tuple[str, ...] = ()  # the ends (``field``, ``turn``) that a token reaches across


Made = tuple[list[Tokenised], Counter[str]]  # and the reasons of those that were refused
LabelIds = Mapping[str, list[int]]


class PromptTokenizer:
    """The tokenizer of a base model's folder; ``start`` is its token before every prompt (BOS).

    Attributes:
        context: longest sequence of the model, in tokens; ``None`` where its configuration names none.
        rows: of the model's embedding; ``None`` where its configuration does not say.
        end: id of the token that ends an answer: a turn's end in a chat, else a sequence's; ``None`` without one.
    """

    def __init__(self, folder: Path, chat: ChatTemplate | None = None) -> None:
        """Load it from ``tokenizer.json``, ``config.json`` and ``tokenizer_config.json``."""
        path = require(folder / "tokenizer.json", "base")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{path}: damaged tokenizer ({error}); run: dvc repro base") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = read_json(require(folder / "config.json", "base"))
        self.context: int | None = config.get("max_position_embeddings", config.get("n_positions"))
        self.rows: int | None = config.get("vocab_size")
        self.chat = chat is not None
        special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self.end, self._tail = self._end_of_turn(chat.closing) if chat else (None, "")
        if self.end is None:
            self.end = self._end_id(config, folder / "tokenizer_config.json")
        self.start = [] if chat else start_of(self._tokenizer)
        self._check_rows([self.end or 0, *self.start])

    def room(self, max_tokens: int) -> int:
        """Longest prompt and answer together: ``max_tokens``, or the model's context if that is less."""
        return min(max_tokens, self.context or max_tokens)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every prompt: what the tokenizer puts first (BOS), then the text; nothing at the end."""
        return [self.start + ids for ids in self._plain(texts)]

    def ends(self, examples: Sequence[Example], prompts: Sequence[list[int]]) -> list[tuple[tuple[int, bool], ...]]:
        """Ends of field and turn (in a chat) in every prompt, in tokens, and whether a token reaches across.

        The text up to an end is tokenised by itself: tokens that both begin with hold nothing of what follows it.
        """
        found: list[list[tuple[int, bool]]] = []
        for kind in ("field_end", "turn_end") if self.chat else ("field_end",):
            alone = self.prompts([example.prompt[: getattr(example, kind)] for example in examples])
            counts = [len(commonprefix(pair)) for pair in zip(alone, prompts, strict=True)]  # noqa: RUF071
            found.append([(count, count < len(ids)) for count, ids in zip(counts, alone, strict=True)])
        return list(zip(*found, strict=True))

    def answers(self, asked: Sequence[tuple[Example, str]], *, ended: bool = False) -> list[list[int]]:
        """Token ids of every answer as it follows its example's prompt; ``ended``: up to the token that ends answers.

        Both are tokenised together. Where their border was merged into one token, the answer is tokenised by itself.
        """
        prompts = [example.prompt for example, _ in asked]
        tail, end = (self._tail, [self.end]) if ended and self.end is not None else ("", [])
        spaced = [_lead(example) + answer + tail for example, answer in asked]
        joint = self._plain([prompt + answer for prompt, answer in zip(prompts, spaced, strict=True)])
        heads, apart = self._plain(prompts), self._plain(spaced)
        return [
            [*(both[len(head) :] if both[: len(head)] == head else alone), *end]
            for head, both, alone in zip(heads, joint, apart, strict=True)
        ]

    def encoded(self, texts: Sequence[str]) -> Iterator[Encoding]:
        """Every text's tokens, nothing put around them."""
        for start in range(0, len(texts), _BATCH):
            made = self._tokenizer.encode_batch(list(texts[start : start + _BATCH]), add_special_tokens=False)
            self._check_rows([max(one.ids, default=0) for one in made])
            yield from made

    def notes(self, row: "Tokenised") -> list[str]:
        """Notes on a row, such as special tokens in its own text."""
        example = row.example
        held = self._special.findall(example.text if self.chat else f"{example.text}\n{example.answer}")
        notes = [f"with text that holds a special token of the tokenizer: {token!r}" for token in dict.fromkeys(held)]
        if self.end in row.answer_ids[:-1]:
            notes.append("with an answer that holds the token that ends answers")
        return [*example.notes, *notes]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self.encoded(texts)]

    def _check_rows(self, ids: Sequence[int]) -> None:
        worst = max(ids, default=0)
        if self.rows is not None and worst >= self.rows:
            name = f"token {token!r}" if (token := self._tokenizer.id_to_token(worst)) else "eos_token_id"
            fault = f"{name} has the id {worst}, and the embedding has {self.rows} rows (ids 0 to {self.rows - 1})"
            raise UserError(f"model: {fault}: take its own tokenizer, or resize_token_embeddings")

    def _end_of_turn(self, closing: str) -> tuple[int | None, str]:
        """The first added token in what a template writes after an answer, and the text before it."""
        added = self._tokenizer.get_added_tokens_decoder()
        encoded = self._tokenizer.encode(closing, add_special_tokens=False)
        found = ((i, closing[:at]) for i, (at, _) in zip(encoded.ids, encoded.offsets, strict=True) if i in added)
        return next(found, (None, ""))

    def _end_id(self, config: Mapping[str, Any], path: Path) -> int | None:
        known = config.get("eos_token_id")
        if isinstance(known, list):
            known = known[0] if known else None
        if known is None and path.exists() and (token := read_json(path).get("eos_token")):
            known = self._tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token)
        return known


def _lead(example: Example) -> str:
    """The text between prompt and answer."""
    if example.lead is not None:
        return example.lead
    return "" if example.prompt[-1:].isspace() else " "


def label_ids(tokenizer: PromptTokenizer, examples: Sequence[Example]) -> dict[str, list[int]]:
    """The token ids of every label's word, the same for all rows.

    They are looked up after prompts drawn evenly from the examples, the most frequent ids win. Where one word's
    tokens begin another's (1 and 10), all words close with the token that ends an answer.
    """
    words = {example.label: example.answer for example in examples if example.label is not None}
    probes = examples[:: max(1, len(examples) // _PROBES)]
    ids: dict[str, list[int]] = {}
    alike: list[str] = []
    for ended in (False, True) if tokenizer.end is not None else (False,):
        for label, word in sorted(words.items()):
            seen = Counter(tuple(one) for one in tokenizer.answers([(probe, word) for probe in probes], ended=ended))
            ids[label] = list(max((count, one) for one, count in seen.items())[1])
            if not ids[label]:
                raise UserError(f"data.label_words: the tokenizer makes nothing of {word!r} (label {label!r})")
        ordered = pairwise(sorted(ids, key=ids.__getitem__))  # where one begins another, two neighbours do
        alike = next(([a, b] for a, b in ordered if ids[b][: len(ids[a])] == ids[a]), [])
        if not alike:
            return ids
    pair = " from ".join(f"{words[label]!r} (label {label!r})" for label in alike)
    why = "the tokens of one equal or begin those of the other"
    if tokenizer.end is None:
        why += ", and the model names no end-of-sequence token (eos_token_id in its config.json)"
    raise UserError(f"data.label_words: the tokenizer cannot tell {pair}: {why}; give one another word")


def tokenise(tokenizer: PromptTokenizer, examples: Sequence[Example], labels: LabelIds | None, max_tokens: int) -> Made:
    """Tokenise the examples of a split; returned with the refused ones, counted.

    Prompt and answer have at most ``max_tokens`` together, or the model's context. A prompt that is too long is cut
    from the left, except turns of a chat. Answers of a task with labels are the ids in ``labels``, free answers end
    with ``tokenizer.end``, and candidates end where their text does.
    """
    room = tokenizer.room(max_tokens)
    refused: Counter[str] = Counter()
    made: list[Tokenised] = []
    prompts = tokenizer.prompts([example.prompt for example in examples])
    ends = tokenizer.ends(examples, prompts)
    free = labels is None and not any(example.candidates for example in examples)
    if free and tokenizer.end is None:
        raise UserError("data.task = free: the model names no end-of-sequence token (eos_token_id in its config.json)")
    if labels is None:
        answers = tokenizer.answers([(example, example.answer) for example in examples], ended=free)
    else:
        answers = [labels[example.label or ""] for example in examples]
    candidates = iter(tokenizer.answers([(example, text) for example in examples for text in example.candidates]))
    every = tuple(labels.values()) if labels else ()
    for example, prompt, answer, end in zip(examples, prompts, answers, ends, strict=True):
        chosen_from = tuple(islice(candidates, len(example.candidates)))
        # Every label, or candidate, is scored after the prompt.
        longest = max(map(len, (answer, *every, *chosen_from)))
        short = _cut_left(prompt, len(tokenizer.start), room - longest)
        if not short:
            refused["answer that leaves no room for a prompt (max_tokens)"] += 1
        elif tokenizer.chat and len(short) < len(prompt):
            refused["conversation that is too long (max_tokens)"] += 1
        elif len(set(map(tuple, chosen_from))) < len(chosen_from) or not all(chosen_from):
            refused["candidates that the tokenizer cannot tell apart"] += 1
        else:
            gone = len(prompt) - len(short)
            field, *turn = (max(len(tokenizer.start), count - gone) for count, _ in end)
            merged = tuple(kind for kind, (_, across) in zip(("field", "turn"), end, strict=False) if across)
            made.append(Tokenised(example, short, answer, gone > 0, chosen_from, field, next(iter(turn), None), merged))
    return made, refused


def blocks(tokenizer: PromptTokenizer, documents: Sequence[Example], length: int) -> Made:
    """Cut the documents of a split into blocks of ``length`` tokens; returned with the refused documents, counted."""
    if tokenizer.context and length > tokenizer.context:
        raise UserError(f"data.text.block_tokens = {length}: the model reads {tokenizer.context} tokens at most")
    made: list[Tokenised] = []
    refused: Counter[str] = Counter()
    for document, encoded in zip(documents, tokenizer.encoded([one.text for one in documents]), strict=True):
        before = len(made)
        for number, block in enumerate(cut_blocks(document.text, encoded, tokenizer.start, length)):
            part = Example(
                block_id(document.example_id, number), document.group, None, block.text, block.context, block.text
            )
            made.append(Tokenised(part, block.context_ids, block.ids, cut=False))
        refused["document without a token to predict"] += len(made) == before
    return made, +refused


def shared_prefix(prompts: Sequence[list[int]]) -> int:
    """Length of the longest token prefix common to all prompts that leaves each at least one further token."""
    return min(len(commonprefix(prompts)), min(map(len, prompts)) - 1) if prompts else 0  # noqa: RUF071


def _cut_left(prompt: list[int], start: int, room: int) -> list[int]:
    """The last ``room`` tokens, the first ``start`` ones kept; empty where not one token of text fits."""
    if room <= start:
        return []
    return prompt if len(prompt) <= room else prompt[:start] + prompt[len(prompt) - (room - start) :]
