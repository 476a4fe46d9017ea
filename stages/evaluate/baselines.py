"""What a reader would compare with: the commonest class, and bag-of-words with logistic regression."""

from collections import Counter
from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from stages.common.batches import Example


def majority(training: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """The commonest training label for every test example; ties go to the first in order of name."""
    counts = Counter(example.label or "" for example in training)
    commonest = min(counts, key=lambda label: (-counts[label], label))
    return [commonest] * len(test)


def tfidf(training: Sequence[Example], test: Sequence[Example]) -> list[str]:
    """TF-IDF of words and word pairs, logistic regression: trained on what the model is trained on."""
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b"),
        LogisticRegression(C=10.0, max_iter=2000),
    )
    pipeline.fit([example.text for example in training], [example.label for example in training])
    return [str(label) for label in pipeline.predict([example.text for example in test])]
