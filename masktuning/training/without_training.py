"""What is left of a run with --do_train false: to measure a classifier, and to predict with it."""

from __future__ import annotations

from masktuning.config.errors import UsageError
from masktuning.config.files import make
from masktuning.evaluation.quiet import less_output
from masktuning.evaluation.run import EvaluationJob, evaluate
from masktuning.training.job import TrainingJob


def measure(job: TrainingJob) -> None:
    """Measures the checkpoint that the job names, and predicts with it, as `evaluate` does.

    The results go to results.json and predictions_<set>.jsonl in the output folder. The labels are
    those of the checkpoint, which are matched with the task's by name.

    Raises:
        UsageError: for flags that go with a training only, and as `evaluate`.
    """
    args = job.training
    if job.model.model_name_or_path is None:
        raise UsageError("--do_train false needs --model_name_or_path: a trained classifier")
    if job.run.dry_run or args.resume_from_checkpoint is not None:
        raise UsageError("--dry_run and --resume_from_checkpoint go with a training")
    if job.data.task and job.data.validation_file:
        raise UsageError(
            "--task and --validation_file exclude each other: give one, or name the "
            "file in --eval_files"
        )
    if args.world_size > 1:
        raise UsageError("--do_train false runs in one process: start it without a launcher")
    if args.do_eval and not (job.task.sets or _files(job)):
        raise UsageError(
            "there is no set to measure: give --task, --validation_file or --eval_files, or "
            "--do_eval false"
        )
    make(job.folder)
    progress = not args.disable_tqdm
    with less_output(progress, warnings=True):
        evaluate(
            EvaluationJob(
                model=job.model.model_name_or_path,
                data=job.data,
                sets=[],
                protocols=[],
                max_seq_length=job.model.max_seq_length,
                label_names=[],
                batch_size=args.per_device_eval_batch_size,
                output_dir=str(job.folder),
                tokenizer_name=job.model.tokenizer_name,
                revision=job.model.model_revision,
                progress=progress,
                measures=args.do_eval,
                predicts=args.do_predict,
                use_cpu=args.use_cpu,
            )
        )


def _files(job: TrainingJob) -> bool:
    return bool(job.data.validation_file or job.data.eval_files or job.data.dataset_name)
