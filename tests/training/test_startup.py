"""What happens before the first step: what is imported, and that nothing is read or made twice."""

import gc
import json
import subprocess
import sys
from collections import Counter

from masktuning.config.imports import heavy_imports
from masktuning.demo import EMBEDDED
from masktuning.demo.compare import compare
from masktuning.training import build
from masktuning.training.job import read_job

STOCK = """
import json, sys
import datasets, yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM, Trainer
print(json.dumps(sorted(sys.modules)))
"""
OURS = """
import json, sys
from masktuning.demo import EMBEDDED
from masktuning.demo.compare import compare
from masktuning.training.build import build_trainer
from masktuning.training.job import read_job
trainer, _ = build_trainer(read_job(sys.argv[1:], EMBEDDED))
trainer.create_optimizer()
next(iter(trainer.get_train_dataloader()))
print(json.dumps(sorted(sys.modules)))
"""
REFUSED = """
import gc, json, sys
from masktuning import train
from masktuning.config.errors import UsageError
try:
    train.main(sys.argv[1:])
except UsageError as error:
    print(json.dumps([str(error), "torch" in sys.modules, gc.isenabled(), gc.get_freeze_count()]))
"""


def printed_by(code, *arguments):
    """The JSON on the last line that a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def packages(modules):
    return {name.partition(".")[0] for name in modules}


def test_a_run_imports_no_package_that_stock_trainer_does_without(tmp_path):
    words = ["--max_steps", "1", "--use_cpu", "true", "--output_dir", str(tmp_path / "out")]
    ours = packages(printed_by(OURS, *words, "--method", "mask_tuning"))
    assert {"torch", "transformers", "masktuning"} <= ours
    assert ours - packages(printed_by(STOCK)) <= {"masktuning", "masktuning_C"}


def test_the_imports_of_a_command_are_exempt_from_garbage_collection(tmp_path):
    """Seen in a run that is refused after its imports, since the folder holds somebody's file."""
    (tmp_path / "config.json").write_text("{}")
    words = ["--method", "finetuning", "--output_dir", str(tmp_path)]
    error, imported, enabled, frozen = printed_by(REFUSED, *words)
    assert "config.json, which no run of masktuning wrote" in error
    assert imported and enabled and frozen > 100_000


def test_a_process_that_has_torch_already_is_left_as_it_is():
    frozen = gc.get_freeze_count()
    with heavy_imports():
        assert gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_the_demo_reads_its_texts_once_and_loads_each_model_once(tmp_path, monkeypatch):
    calls = Counter()

    def count(name):
        real = getattr(build, name)

        def counted(*arguments):
            calls[name] += 1
            return real(*arguments)

        monkeypatch.setattr(build, name, counted)

    count("load_texts")
    count("load_model")
    jobs = []
    for method in ("finetuning", "mask_tuning"):
        words = ["--method", method, "--max_steps", "1", "--max_eval_samples", "8"]
        words += ["--disable_tqdm", "true", "--output_dir", str(tmp_path / method)]
        jobs.append(read_job(words, EMBEDDED))
    compare(jobs)
    assert calls == {"load_texts": 1, "load_model": 2}
    assert all((tmp_path / job.training.method / "all_results.json").is_file() for job in jobs)
