"""How long the texts of three tasks are, so that random rows can be as long as real ones.

    python benchmarks/lengths.py DATA_FOLDER TOKENIZER    # writes lengths.json next to this file

DATA_FOLDER is that of the tasks' files, as for `--data_dir`, and TOKENIZER the folder or hub id of
a checkpoint with the vocabulary of bert-base-uncased. lengths.json holds counts and no texts:
`counts[n]` texts have n tokens, special tokens included, after truncation to 128. The training set
of MNLI is represented by its matched development set, which has the same genres. The benchmarks
read the file on any machine, also where the data are not.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from masktuning.data.load import load_set
from masktuning.tasks import load_task

FILE = Path(__file__).with_suffix(".json")
LONGEST = 128
SETS = {"sst2": "train", "mnli": "dev_matched", "qqp": "train"}


def counted(task_name: str, data_dir: str, tokenizer: Any) -> dict[str, Any]:
    """The entry of lengths.json for the set of one task."""
    task = load_task(task_name)
    spec = task.named(SETS[task_name])
    columns = load_set(spec, task.labels, data_dir, ask_hub=False).texts
    encoded = tokenizer(*columns, truncation=True, max_length=LONGEST)["input_ids"]
    found = Counter(map(len, encoded))
    counts = [found[length] for length in range(LONGEST + 1)]
    return {"set": spec.file, "texts": len(encoded), "counts": counts}


def row_lengths(task: str, rows: int, seed: int = 0) -> list[int]:
    """`rows` lengths, drawn with the frequencies of the task's texts."""
    counts = json.loads(FILE.read_text())[task]["counts"]
    return random.Random(seed).choices(range(len(counts)), counts, k=rows)


if __name__ == "__main__":
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
    entries = {task: counted(task, sys.argv[1], tokenizer) for task in SETS}
    lines = [f"{json.dumps(task)}: {json.dumps(entry)}" for task, entry in entries.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
