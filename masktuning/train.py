"""Train a text classifier, measure it in and out of distribution, and keep it as a checkpoint.

The embedded demo, on a laptop, offline:

    python -m masktuning.train

SST-2 from the hub (with --preset paper as in the paper); with the files of the task in DATA, the
edited IMDB reviews are measured too:

    python -m masktuning.train --task sst2 --model_name_or_path roberta-base
    python -m masktuning.train --task sst2 --model_name_or_path roberta-base --data_dir DATA

The baseline, through the same trainer:

    python -m masktuning.train --task sst2 --model_name_or_path roberta-base --method finetuning

Your own files (CSV, TSV, JSONL or Parquet), with an out-of-domain set of your own:

    python -m masktuning.train --model_name_or_path roberta-base --output_dir out \\
        --train_file train.csv --validation_file dev.csv --eval_files reviews=reviews.csv

A classifier that is there already, measured without training, and its predictions for new texts:

    python -m masktuning.train --do_train false --model_name_or_path out --output_dir measured \\
        --validation_file dev.csv --do_predict --test_file new.csv

Two GPUs, and resuming a run that was stopped:

    torchrun --nproc_per_node=2 -m masktuning.train --task sst2 ... --output_dir out
    python -m masktuning.train --config out/config.yaml --resume_from_checkpoint

A demo that was stopped is resumed with --output_dir and --resume_from_checkpoint.
"""

from __future__ import annotations

import tempfile
from typing import Any

from masktuning.config.imports import heavy_imports
from masktuning.config.installed import import_datasets
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.config.parser import build_parser, run_command, wants_help
from masktuning.demo import EMBEDDED
from masktuning.methods import method_class
from masktuning.methods import names as method_names
from masktuning.methods.choice import MethodChoice
from masktuning.tasks import names
from masktuning.training.job import read_job, read_method

PROGRAM = "python -m masktuning.train"
EPILOG = """\
Every flag of transformers.TrainingArguments works too; the ones used most:
  --output_dir --learning_rate --num_train_epochs --max_steps --warmup_steps --weight_decay --seed
  --per_device_train_batch_size --per_device_eval_batch_size --gradient_accumulation_steps
  --max_grad_norm --bf16 --fp16 --use_cpu --report_to --logging_steps --eval_strategy
  --save_strategy --save_steps --save_total_limit --resume_from_checkpoint --label_smoothing_factor
  --do_train --do_eval --do_predict --load_best_model_at_end --metric_for_best_model
Added to these: --class_weights --precision --pad_to_multiple_of
Methods: {methods}.
A method has flags of its own; they are shown by python -m masktuning.train --method NAME --help
Tasks: {tasks}; or a YAML file. A task brings its own batch size, epochs, ...; flags win.
Without --task and --train_file the demo runs: plain fine-tuning, Mask-tuning, bias_product and
learned_mixin, one after the other.
"""


def main(argv: list[str]) -> None:
    """Trains what the flags say; see the top of this file."""
    if wants_help(argv):
        _help_parser(argv).print_help()
        return
    with heavy_imports():
        job = read_job(argv, EMBEDDED)
        import_datasets()  # said now, before a model is loaded or an earlier run removed
        from masktuning.demo.compare import compare  # seconds of imports: after the cheap errors
        from masktuning.demo.jobs import demo_jobs
        from masktuning.training.dry_run import dry_run
        from masktuning.training.run import run
        from masktuning.training.without_training import measure

    if not job.training.do_train:
        measure(job)
        return
    jobs = [job]
    if job.task.generated and "method" not in job.chosen:
        jobs = demo_jobs(argv, job)
    if job.run.dry_run:
        for one in jobs:
            print(f"{one.task.name}, {one.training.method}:")
            with tempfile.TemporaryDirectory() as folder:
                dry_run(one, folder)
    elif len(jobs) > 1:
        compare(jobs)
    else:
        run(job)


def _help_parser(argv: list[str]) -> Any:
    """The flags that every run has and, if a method is named, those of the method."""
    groups: list[type] = [ModelArguments, DataArguments, MethodChoice, RunArguments]
    if method := read_method(argv):
        groups.insert(3, method_class(method).Options)
    epilog = EPILOG.format(tasks=", ".join(names()), methods=", ".join(method_names()))
    return build_parser(PROGRAM, __doc__ or "", groups, epilog)


if __name__ == "__main__":
    run_command(main)
