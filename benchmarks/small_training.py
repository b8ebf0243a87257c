"""A short Mask-tuning run of the embedded checkpoint, without the package `datasets`.

    python benchmarks/small_training.py result.json [STEPS]

MaskTuningTrainer on a plain list of tokenised rows, made of the demo's generated sentences, on the
GPU if there is one. It fails if the loss is not finite or the classifier did not learn: guessing
classifies half of the dev set correctly, and 60 steps on a CPU reached 95 %.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, write_json
from transformers import AutoTokenizer, set_seed

from masktuning import MaskTuningArguments, MaskTuningModel, MaskTuningTrainer
from masktuning.data.generated import LABELS, examples
from masktuning.demo import EMBEDDED

STEPS = 60
LEARNT = 0.7


def tokenised(tokenizer: Any, name: str) -> list[dict[str, Any]]:
    """The rows of one of the generated sets of the demo, as Trainer takes them."""
    texts, labels = examples(name)
    encoded = tokenizer([text for (text,) in texts], truncation=True, max_length=48)
    ids = [LABELS["demo"].index(label) for label in labels]
    return [
        {**{key: column[i] for key, column in encoded.items()}, "labels": label}
        for i, label in enumerate(ids)
    ]


def train(folder: str, steps: int) -> dict[str, float]:
    """The metrics of training and of the evaluation on the dev set."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    arguments = MaskTuningArguments(
        folder,
        alpha=0.1,
        learning_rate=1e-3,
        max_steps=steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        logging_steps=max(1, steps // 10),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = MaskTuningTrainer(
        model=MaskTuningModel.from_pretrained(EMBEDDED, num_labels=2),
        args=arguments,
        train_dataset=tokenised(tokenizer, "demo/train"),
        eval_dataset=tokenised(tokenizer, "demo/dev"),
        processing_class=tokenizer,
    )
    trained = trainer.train().metrics
    trainer.save_model()
    return {**trained, **trainer.evaluate(), "device": str(trainer.args.device)}


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else None
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(folder, steps)
    write_json(path, {"environment": environment(), "steps": steps, **metrics})
    accuracy, loss = metrics["eval_accuracy"], metrics["train_loss"]
    print(f"loss {loss:.3f}, accuracy on dev {accuracy:.3f} after {steps} steps")
    if not math.isfinite(loss) or accuracy < LEARNT:
        sys.exit(f"training failed: the accuracy should be at least {LEARNT}")
