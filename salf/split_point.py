"""Finds the start of an example's trained side (positions ``answer``). No torch here.

The base model reads a prompt up to its split point s; trained weights act at the positions after it. ``prepare``
records where the data of each prompt end, in tokens: ``field_end`` for the last data column (in a conversation, the
words of the last turn before the answer), ``turn_end`` for the last turn with what the chat template writes after it.
A token that reaches across such an end belongs to the trained side. ``meta.json`` counts these examples as ``merged``.
"""

from collections.abc import Sequence

from salf.errors import UserError
from salf.settings import AnswerSide


def base_rows(prompt_tokens: int, data_end: int, extra: int = 0) -> int:
    """Count the prompt tokens that the base model reads, given where the prompt's data end, in tokens.

    The position that predicts the first answer token is always trained, and ``extra`` more than the data leave.
    0: nothing is left for the base model, and the example cannot be used.
    """
    return max(0, min(data_end, prompt_tokens - 1) - extra)


def split_points(prompt_tokens: Sequence[int], ends: Sequence[int | None], side: AnswerSide) -> list[int]:
    """The base rows of every example: ``prompt_tokens`` and ends of the kind that ``side`` names, one per example.

    Raises:
        UserError: the prepared data do not say where data end, or some examples have no prompt part.
    """
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        remedy = "run prepare again" if side.start == "field" else "set prepare.chat_template, and run prepare again"
        raise UserError(f"the prepared data do not say where the {side.start} of a prompt ends: {remedy}")
    points = [base_rows(tokens, end, side.extra) for tokens, end in zip(prompt_tokens, known, strict=True)]
    if without := points.count(0):
        raise UserError(
            f"{without:,} of {len(points):,} examples have no prompt part that the base model could read; lower "
            "finetune.answer_side.extra, put text before the last column of data.template, or leave out +answer"
        )
    return points
