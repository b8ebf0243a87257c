"""Train a text classifier, measure it in and out of distribution, keep it as a plain checkpoint.

The embedded demo, on a laptop, offline:

    python -m masktuning.train

SST-2 from the hub, with the paper's settings, tested on the edited IMDB reviews too (as files):

    python -m masktuning.train --task sst2 --model_name_or_path roberta-base
    python -m masktuning.train --task sst2 --model_name_or_path roberta-base --data_dir DATA

The baseline, through the same trainer:

    python -m masktuning.train --task sst2 --model_name_or_path roberta-base --method finetuning

Your own files (CSV, TSV, JSONL or Parquet), with an out-of-domain set beside:

    python -m masktuning.train --model_name_or_path roberta-base --alpha 0.3 --output_dir out \\
        --train_file train.csv --validation_file dev.csv --eval_files reviews=reviews.csv

Two GPUs; go on after a stop:

    torchrun --nproc_per_node=2 -m masktuning.train --task sst2 ... --output_dir out
    python -m masktuning.train --config out/config.yaml --resume_from_checkpoint

The demo goes on with --output_dir and --resume_from_checkpoint.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from masktuning.config.installed import import_datasets
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.config.parser import (
    build_parser,
    run_command,
)
from masktuning.demo import EMBEDDED
from masktuning.tasks import names
from masktuning.training.job import read_job
from masktuning.training.method_arguments import MethodArguments

if TYPE_CHECKING:
    pass

PROGRAM = "python -m masktuning.train"
EPILOG = """\
Every flag of transformers.TrainingArguments works too; the ones used most:
  --output_dir --learning_rate --num_train_epochs --max_steps --warmup_steps --weight_decay --seed
  --per_device_train_batch_size --per_device_eval_batch_size --gradient_accumulation_steps
  --max_grad_norm --bf16 --fp16 --use_cpu --report_to --logging_steps --eval_strategy
  --save_strategy --save_steps --save_total_limit --resume_from_checkpoint --label_smoothing_factor
Tasks: {tasks}; or a YAML file. A task brings its own alpha, batch size, ...; flags win over it.
Without --task and --train_file the demo runs, with plain fine-tuning beside Mask-tuning.
"""


def main(argv: list[str]) -> None:
    if "-h" in argv or "--help" in argv:
        groups = [ModelArguments, DataArguments, MethodArguments, RunArguments]
        epilog = EPILOG.format(tasks=", ".join(names()))
        build_parser(PROGRAM, __doc__ or "", groups, epilog).print_help()
        return
    options = read_job(argv, EMBEDDED)
    import_datasets()  # said now, before a model is loaded or an earlier run removed
    from masktuning.training.dry_run import dry_run
    from masktuning.training.run import run

    runs = [options]
    if options.task.generated and "method" not in options.chosen:
        beside = Path(str(options.training.output_dir)) / "finetuning"
        plain = ["--method", "finetuning", "--output_dir", str(beside)]
        runs.insert(0, read_job([*argv, *plain], EMBEDDED))
    if options.run.dry_run:
        for one in runs:
            print(f"{one.task.name}, {one.training.method}:")
            with tempfile.TemporaryDirectory() as folder:
                dry_run(one, folder)
    elif len(runs) > 1:
        from masktuning.demo.compare import compare

        compare(runs)
    else:
        run(options)


if __name__ == "__main__":
    run_command(main)
