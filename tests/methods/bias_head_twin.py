"""The bias head of PoE and its relatives, in float64 and one text at a time."""

import torch

SPECIAL_WORDS = 0, 2  # <s> and </s>
# (all in the premise, a contiguous part of it, the share of different words) of debiasing.PAIRS
EXACT = [(1, 1, 1), (0, 0, 1 / 2), (1, 0, 1), (0, 0, 0)]


def states_of(classifier, words):
    """[L, H], the encoder's last states of one text, given as words w3 w4 ... or W5."""
    numbers = [int(w[1:]) + (84 if w[0] == "W" else 0) + 5 for w in words.split()]
    ids = torch.tensor([[0, *numbers, 2]])
    with torch.no_grad():
        return ids, classifier.base_model(input_ids=ids)


def seen_by_overlap(classifier, pairs, exact=EXACT):
    """[B, 6] float64."""
    rows = []
    for (premise, hypothesis), known in zip(pairs, exact, strict=True):
        p, h = (states_of(classifier, text)[1][0][0] for text in (premise, hypothesis))
        best = []
        for one in h:
            best.append(max(float(one @ other / (one.norm() * other.norm())) for other in p))
        rows.append([*known, min(best), sum(best) / len(best), max(best)])
    return torch.tensor(rows, dtype=torch.float64)


def seen_by_hypothesis(classifier, pairs):
    """[B, H] float64, the pooled state of each second text."""
    rows = []
    for _, hypothesis in pairs:
        output = states_of(classifier, hypothesis)[1]
        pooler = getattr(output, "pooler_output", None)
        rows.append(output[0][0, 0] if pooler is None else pooler[0])
    return torch.stack(rows)


def head(own, seen):
    """[B, C], the logits of the head with the weights `own`, layer by layer."""
    names = sorted({name.rpartition(".")[0] for name in own}, key=lambda n: int(n.split(".")[-1]))
    for i, name in enumerate(names):
        seen = seen @ own[f"{name}.weight"].T + own[f"{name}.bias"]
        seen = torch.tanh(seen) if i < len(names) - 1 else seen
    return seen, len(names)


def bias_logits(stock, kind, pairs):
    """[B, C] float64, through which no gradient reaches the encoder."""
    seen = {"overlap": seen_by_overlap, "hypothesis": seen_by_hypothesis}[kind]
    logits, layers = head(stock.own, seen(stock.classifier, pairs))
    assert layers == {"overlap": 3, "hypothesis": 4}[kind]
    return logits


def weighted(kind, labels):
    """The weights of the labels in the head's own cross-entropy, for entailment as label 0."""
    return [1.0 if label == 0 or kind == "hypothesis" else 0.5 for label in labels]


def bias_cross_entropy(logits, kind, labels):
    weights = weighted(kind, labels)
    p = logits.softmax(-1)
    total = sum(
        -w * p[i, label].log() for i, (w, label) in enumerate(zip(weights, labels, strict=True))
    )
    return total / sum(weights)
