"""Baselines: the most frequent answer, and bag-of-words with logistic regression."""

import re
from collections.abc import Sequence
from statistics import multimode
from typing import Any, Final

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from salf.engine.batches import Example

_WORD: Final = r"(?u)\b\w+\b"


def answers(training: Sequence[Example], test: Sequence[Example]) -> dict[str, list[str]]:
    """Each baseline's answers to the test examples: labels, or texts of candidates."""
    if training[0].candidates:
        return {"tfidf": tfidf_of_candidates(training, test), "majority": commonest_place(training, test)}
    return {"tfidf": tfidf(training, test), "majority": majority(training, test)}


def majority(training: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """Answer with the most frequent training label; ties go to the first in order of name."""
    return [min(multimode(example.label or "" for example in training))] * len(test)


def commonest_place(training: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """Answer with the candidate at the most frequent place of the right one; the last one where there are fewer."""
    place = min(multimode(_right(example) for example in training))
    return [example.candidates[min(place, len(example.candidates) - 1)].text for example in test]


def tfidf(training: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """Classify by TF-IDF of words and word pairs and logistic regression, trained on the training split."""
    pipeline = _bag_of_words([example.text for example in training], [example.label for example in training])
    return [str(label) for label in pipeline.predict([example.text for example in test])]


def tfidf_of_candidates(training: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """Answer with the candidate whose words are most like those of right ones, without reading the question.

    It measures what candidates alone give away: a model that is no better has learned nothing from the questions.
    """
    labelled = [(one.text, at == _right(example)) for example in training for at, one in enumerate(example.candidates)]
    candidates, right = zip(*labelled, strict=True)
    pipeline = _bag_of_words(candidates, right)
    chosen = []
    for example in test:
        texts = [one.text for one in example.candidates]
        chosen.append(texts[int(pipeline.predict_proba(texts)[:, 1].argmax())])
    return chosen


def _right(example: Example) -> int:
    return next(at for at, one in enumerate(example.candidates) if one.ids == example.answer_ids)


def _bag_of_words(texts: Sequence[str], labels: Sequence[Any]) -> Pipeline:
    """Fit to the labels; features are words, or characters where no text has a word: smileys, operators."""
    known = {"token_pattern": _WORD} if any(re.search(_WORD, text) for text in texts) else {"analyzer": "char"}
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, **known)
    return make_pipeline(features, LogisticRegression(C=10.0, max_iter=2000)).fit(texts, labels)
