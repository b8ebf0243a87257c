"""Where the time goes, by clocks that only move when some part of the work is done."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from transformers import DataCollatorWithPadding, TrainerCallback

from masktuning import MaskTuningTrainer, arguments_for
from masktuning.methods.bias.method import COLUMN
from masktuning.ops import token_substitution_kernels
from masktuning.training import time_log
from masktuning.training.time_log import PARTS, TimeLog, as_metrics, from_metrics, time_table

# What each event moves the clock by; sums of a few of them say how often each was counted.
ENCODER_FORWARD, ENCODER_BACKWARD, HEAD_FORWARD, HEAD_BACKWARD = 1, 10, 100, 1_000
ROW_KERNEL, OPTIMIZER, COLLATE, LOG = 10_000, 100_000, 1_000_000, 10_000_000


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def tick(self, amount):
        self.now += amount


class Event:
    """A CUDA event of a device that has come as far as `reached`; counts who waited for it."""

    clock, reached, made, waits = Clock(), 0, 0, 0

    def __init__(self, enable_timing):
        assert enable_timing
        Event.made += 1

    def record(self):
        self.time = self.clock.now

    def query(self):
        return self.time <= Event.reached

    def synchronize(self):
        Event.waits += 1
        Event.reached = max(Event.reached, self.time)

    def elapsed_time(self, end):
        assert self.query() and end.query()
        return 1000 * (end.time - self.time)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time_log, "time", SimpleNamespace(perf_counter=clock))
    return clock


@pytest.fixture
def gpu_clock(monkeypatch):
    for name, value in {"clock": Clock(), "reached": 0, "made": 0, "waits": 0}.items():
        monkeypatch.setattr(Event, name, value)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return Event.clock


def seconds_of(log):
    return {part: value for part, value in log.seconds().items() if value}


def test_every_moment_belongs_to_one_part(clock):
    log = TimeLog(torch.device("cpu"))
    clock.tick(1)  # before anything began
    log.enter("data")
    clock.tick(2)
    log.enter("head")
    clock.tick(4)
    with log.during("evaluation"), log.during("evaluation"):
        clock.tick(8)
    clock.tick(16)  # the head again
    log.enter(None)
    clock.tick(32)
    assert seconds_of(log) == {"data": 2, "head": 20, "evaluation": 8}
    log.enter("rest")
    clock.tick(64)
    assert "rest" not in seconds_of(log), "it has not ended"
    log.restart()
    clock.tick(128)
    log.enter(None)
    assert seconds_of(log) == {"rest": 128}


def test_a_gpu_s_steps_are_sampled_and_nothing_waits_for_them(gpu_clock):
    log = TimeLog(torch.device("cuda"))
    log.enter("rest")
    log.begin_training(steps=1000)
    for step in range(1000):
        for part, amount in (("data", 1), ("head", 2), ("encoder", 8), ("head", 4)):
            log.enter(part)
            gpu_clock.tick(amount)
        log.enter("optimizer")
        gpu_clock.tick(16)
        log.end_step()
        gpu_clock.tick(32)
        Event.reached = gpu_clock.now - 500  # the device is far behind the host
        if step % 100 == 0:
            with log.during("evaluation"):
                gpu_clock.tick(64)
    log.enter(None)
    assert Event.waits == 0
    # A step that is not split has two events, one that is split has six.
    assert Event.made < 2 * 1000 + 4 * 50 + 2 * 10 + 10
    expected = {"data": 1000, "head": 6000, "encoder": 8000, "optimizer": 16000}
    assert seconds_of(log) == pytest.approx({**expected, "rest": 32000, "evaluation": 640})
    assert Event.waits == 1


@pytest.mark.parametrize("steps", [1, 2, 49, 50, 101, 1000])
def test_a_short_run_has_a_step_that_is_split(gpu_clock, steps):
    log = TimeLog(torch.device("cuda"))
    log.begin_training(steps)
    for _ in range(max(1, steps // 50)):
        log.enter("encoder")
        gpu_clock.tick(1)
        log.end_step()
    log.enter(None)
    assert seconds_of(log) == {"encoder": max(1, steps // 50)}


def test_steps_that_cannot_be_split_are_not_lost(gpu_clock):
    """Training stopped before the first of the steps that would have been split."""
    log = TimeLog(torch.device("cuda"))
    log.begin_training(1000)
    log.enter("encoder")
    gpu_clock.tick(3)
    log.end_step()
    log.enter(None)
    assert seconds_of(log) == {"rest": 3}


class Ticking(TrainerCallback):
    def __init__(self, clock):
        self.clock = clock

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.clock.tick(OPTIMIZER)

    def on_log(self, *args, **kwargs):
        self.clock.tick(LOG)


def ticking_model(clock):
    """A model whose encoder and heads move the clock, in each direction."""
    model = tiny_model("bert")

    def ticks(module, forward, backward):
        def ended(module, inputs, output):
            clock.tick(forward)
            if output.requires_grad:
                output.register_hook(lambda gradient: clock.tick(backward))

        module.register_forward_hook(ended)

    ticks(model.encoder.encoder.layer[0].attention.output, ENCODER_FORWARD, ENCODER_BACKWARD)
    ticks(model.classifier.classifier, HEAD_FORWARD, HEAD_BACKWARD)
    ticks(model.mlm_head.mlm.cls.predictions.transform, HEAD_FORWARD, HEAD_BACKWARD)
    return model


def ticking_kernel(clock, monkeypatch):
    kernel = token_substitution_kernels.KERNELS["cpp"]

    def ticking(*arguments):
        clock.tick(ROW_KERNEL)
        return kernel(*arguments)

    monkeypatch.setitem(token_substitution_kernels.KERNELS, "cpp", ticking)


def ticking_trainer(clock, folder, method, **options):
    """Eight batches of two in an epoch, then one batch of dev."""
    pad = DataCollatorWithPadding(tiny_tokenizer())

    def collate(rows):
        clock.tick(COLLATE)
        return pad(rows)

    settings = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "optim": "sgd",
        "backend": "cpp",
        **options,
    }
    if method == "mask_tuning":
        settings["min_per_example"] = 1  # a batch without masks needs one pass only
    rows = [{**row, COLUMN: [-0.7, -0.7]} for row in examples(16, 1)]
    return MaskTuningTrainer(
        model=ticking_model(clock),
        args=arguments_for(method)(str(folder), **settings),
        data_collator=collate,
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(examples(4, 2)),
        processing_class=tiny_tokenizer(),
        callbacks=[Ticking(clock)],
    )


@pytest.mark.parametrize(
    ("method", "passes", "accumulation", "device"),
    [
        ("mask_tuning", 2, 1, "cpu"),
        ("mask_tuning", 2, 4, "cpu"),
        ("mask_tuning", 2, 4, "cuda"),
        ("finetuning", 1, 4, "cpu"),
        ("cutoff", 1, 1, "cpu"),
        ("bias_product", 1, 4, "cuda"),
    ],
)
def test_each_part_has_its_own_time(
    tmp_path, monkeypatch, request, method, passes, accumulation, device
):
    """On the CPU, and with the events of a device that nothing waits for."""
    clock = request.getfixturevalue("clock" if device == "cpu" else "gpu_clock")
    ticking_kernel(clock, monkeypatch)
    trainer = ticking_trainer(clock, tmp_path, method, gradient_accumulation_steps=accumulation)
    if device == "cuda":
        trainer.time_log.__init__(torch.device("cuda"))
    began = clock.now  # the trainer has tried the model out
    trainer.train()
    steps = 8 // accumulation
    expected = {
        "encoder": 8 * passes * (ENCODER_FORWARD + ENCODER_BACKWARD),
        "head": 8 * passes * (HEAD_FORWARD + HEAD_BACKWARD),
        "row_kernel": 8 * ROW_KERNEL * (passes - 1),
        "optimizer": steps * OPTIMIZER,
        "data": 8 * COLLATE,
        "evaluation": COLLATE + ENCODER_FORWARD + HEAD_FORWARD + LOG,
        "rest": (steps + 1) * LOG,  # the last line is that of the whole training
    }
    assert Event.waits == 0
    assert seconds_of(trainer.time_log) == {k: v for k, v in expected.items() if v}
    assert sum(expected.values()) == clock.now - began
    assert "row kernel" not in trainer.time_report() or method == "mask_tuning"
    trainer.evaluate()  # after training it is counted, too; predictions are the user's own affair
    expected["evaluation"] *= 2
    assert seconds_of(trainer.time_log) == {k: v for k, v in expected.items() if v}


def test_one_backward_pass_for_both_losses(tmp_path, monkeypatch, clock):
    """The masked-LM head's follows the encoder's second pass there."""
    ticking_kernel(clock, monkeypatch)
    trainer = ticking_trainer(clock, tmp_path, "mask_tuning")
    monkeypatch.setattr(trainer, "_allows_backward_passes", lambda model: False)
    trainer.train()
    seconds = trainer.time_log.seconds()
    assert seconds["encoder"] == 16 * (ENCODER_FORWARD + ENCODER_BACKWARD)
    assert seconds["head"] == 16 * (HEAD_FORWARD + HEAD_BACKWARD)


def test_what_checkpointing_computes_again_is_the_encoder_s(tmp_path, monkeypatch, clock):
    ticking_kernel(clock, monkeypatch)
    trainer = ticking_trainer(clock, tmp_path, "mask_tuning")
    newer = hasattr(trainer.model.model.classifier, "activation_checkpointing_enable")
    getattr(trainer.model, f"{'activation' if newer else 'gradient'}_checkpointing_enable")()
    trainer.train()
    seconds = trainer.time_log.seconds()
    assert seconds["encoder"] == 16 * (2 * ENCODER_FORWARD + ENCODER_BACKWARD)
    assert seconds["head"] == 16 * (HEAD_FORWARD + HEAD_BACKWARD)


def test_nothing_of_it_stays_on_the_model(tmp_path, clock):
    """Neither after training nor after one that was stopped."""

    def hooks(trainer):
        modules = [trainer.model.model.encoder, trainer.model.model.mlm_head]
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]

    trainer = ticking_trainer(clock, tmp_path, "mask_tuning")
    trainer.train()
    assert hooks(trainer) == [0, 0] and trainer.time_log.part is None
    trainer.add_callback(Stopping())
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert hooks(trainer) == [0, 0] and trainer.time_log.part is None
        assert not token_substitution_kernels._surroundings


class Stopping(TrainerCallback):
    def on_substep_end(self, *args, **kwargs):
        raise KeyboardInterrupt

    on_step_end = on_substep_end


def test_the_table_has_a_line_for_each_part_and_the_whole():
    seconds = {**dict(zip(PARTS, itertools.count(1), strict=False)), "data": 0.0}
    whole = sum(seconds.values())
    table = time_table({"mask_tuning": seconds, "finetuning": {"encoder": 3.0}}).splitlines()
    assert table[0].split() == ["time", "mask_tuning", "finetuning"]
    rows = {line[:10].strip(): line[10:].split() for line in table[2:]}
    assert rows.keys() == {p.replace("_", " ") for p in PARTS if p != "data"} | {"all"}
    assert rows["row kernel"] == ["3.0", "s", f"{300 / whole:.0f}", "%", "0.0", "s", "0", "%"]
    assert rows["all"] == [f"{whole:.1f}", "s", "100", "%", "3.0", "s", "100", "%"]


def test_parts_that_took_no_time_are_not_written():
    written = as_metrics({"encoder": 2.0, "row_kernel": 1.0, "data": 0.0})
    assert written == {"train_seconds_encoder": 2.0, "train_seconds_row_kernel": 1.0}
    assert from_metrics({**written, "train_loss": 0.5}) == {"encoder": 2.0, "row_kernel": 1.0}
