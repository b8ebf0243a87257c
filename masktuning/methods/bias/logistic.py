"""Logistic regressions of scikit-learn, which is imported only where one is fitted.

Shapes: N examples, F features, C classes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from masktuning.config.errors import UsageError
from masktuning.ops.philox import draw_words

FOLDS = 5
_STREAM = 40  # of random numbers, for the fold of an example; the seed does not matter
_LOWEST = -20.0  # a log-probability, so that no label is impossible


def require_sklearn() -> None:
    """Raises UsageError if scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise UsageError(
            "this --bias_model is a logistic regression of scikit-learn, which is not installed: "
            "pip install 'masktuning[bias]'"
        )


def two_class_regression(
    features_NF: np.ndarray, positive_N: np.ndarray, labelled_N: np.ndarray
) -> np.ndarray:
    """[N, 2] float64, the log-probabilities of false and true for all N examples.

    The regression is fitted on the examples of `labelled_N`. Its settings are those of Clark et
    al.'s code:
    liblinear, C = 100, balanced class weights.
    """
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(
        solver="liblinear", C=100.0, class_weight="balanced", random_state=0
    ).fit(features_NF[labelled_N], positive_N[labelled_N])
    scores_N = torch.from_numpy(fitted.decision_function(features_NF))
    log_sigmoid = torch.nn.functional.logsigmoid
    return torch.stack([log_sigmoid(-scores_N), log_sigmoid(scores_N)], 1).numpy()


def held_out_regression(
    texts: Sequence[Sequence[int]], labels: Sequence[int], example_ids: Sequence[int], classes: int
) -> np.ndarray:
    """[N, C] float64, log-probabilities of the labels given the set of token ids in each text.

    A regression on thousands of words learns its training examples by heart, so each of the five
    parts of the examples is predicted by a regression that was fitted on the other four. Which part
    an example belongs to depends on its `example_ids` only. Examples with label -100 are predicted
    only.

    Raises:
        UsageError: if four of the parts do not have two labels.
    """
    from sklearn.linear_model import LogisticRegression

    occurs_NV = _occurrences(texts)
    labels_N = np.asarray(labels)
    folds_N = _folds(example_ids)
    found_NC = np.full((len(texts), classes), _LOWEST)
    for fold in np.unique(folds_N):
        held_out = folds_N == fold
        fitting = ~held_out & (labels_N >= 0)
        seen = labels_N[fitting]
        if len(np.unique(seen)) < 2:
            raise UsageError(
                f"--bias_model: {len(texts)} training examples are too few, since four fifths of "
                "them must have two labels"
            )
        fitted = LogisticRegression(max_iter=1000).fit(occurs_NV[fitting], seen)
        logs = np.maximum(fitted.predict_log_proba(occurs_NV[held_out]), _LOWEST)
        found_NC[np.ix_(held_out, fitted.classes_)] = logs
    return torch.from_numpy(found_NC).log_softmax(-1).numpy()


def _occurrences(texts: Sequence[Sequence[int]]) -> Any:
    """[N, V] sparse, 1 where a token id occurs in a text; only ids that occur have a column."""
    from scipy.sparse import csr_matrix

    sets = [sorted(set(text)) for text in texts]
    ids = np.array([token for one in sets for token in one], dtype=np.int64)
    places = np.unique(ids, return_inverse=True)[1]
    ends = np.cumsum([0, *map(len, sets)])
    width = int(places.max()) + 1 if len(places) else 1
    return csr_matrix((np.ones(len(ids)), places, ends), shape=(len(sets), width))


def _folds(example_ids: Sequence[int]) -> np.ndarray:
    """[N], the part of each example, by the counter-based generator of the ops."""
    ids = torch.tensor(example_ids)
    draws = draw_words(torch.zeros(2, dtype=torch.int64), torch.zeros_like(ids), ids, _STREAM)[0]
    return ((draws * FOLDS) >> 32).numpy()
