"""A tiny treebank, made up for the tests, of words that the tiny tokenizer knows."""

from __future__ import annotations

from pathlib import Path

ROW = "{}\t{}\t_\t{}\t_\t_\t{}\t{}\t_\t_"
DETERMINERS = ("w1", "w2", "w3")
NOUNS = ("w10", "w11", "w12", "w13")
VERBS = ("w20", "w21", "w22")
ADVERBS = ("w30", "w31")


def sentences(count: int = 12) -> list[list[tuple[str, int, str]]]:
    """Sentences of (word, head, relation), with a subject and an object and perhaps an adverb."""
    made = []
    for i in range(count):
        rows = [
            (DETERMINERS[i % 3], 2, "det"),
            (NOUNS[i % 4], 3, "nsubj"),
            (VERBS[(i // 2) % 3], 0, "root"),
            (DETERMINERS[(i + 1) % 3], 5, "det"),
            (NOUNS[(i // 3) % 4], 3, "obj"),
        ]
        if i % 3 == 0:
            rows.append((ADVERBS[i % 2], 3, "advmod"))
        if i % 4 == 3:
            rows = [(word, max(head - 2, 0), name) for word, head, name in rows[2:]]  # no subject
        made.append(rows)
    return made


def write_treebank(path: Path, count: int = 12) -> str:
    """Writes `sentences` as a CoNLL-U file; the second one has a multiword token and a node."""
    blocks = []
    for i, rows in enumerate(sentences(count)):
        lines = [f"# sent_id = {i}"]
        if i == 1:
            lines.append("1-2\tw1w2" + "\t_" * 8)
        for number, (word, head, name) in enumerate(rows, 1):
            lines.append(ROW.format(number, word, "X", head, name))
            if i == 1 and number == 2:
                lines.append("2.1\tw40" + "\t_" * 8)
        blocks.append("\n".join(lines) + "\n")
    path.write_text("\n".join(blocks) + "\n")
    return str(path)
