"""MaskTuningTrainer: accumulation, processes, resuming and checkpoints change nothing."""

import logging
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import examples, save_tiny, tiny_model, tiny_tokenizer
from processes import SGD, TERMS, TORCHRUN, assert_same_steps, run_script
from stock_step import expected_step
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from masktuning import MaskTuningArguments, MaskTuningCollator, MaskTuningTrainer
from masktuning.config.errors import UsageError
from masktuning.data.example_ids import with_example_ids
from masktuning.methods.perturbed_texts import perturbed_texts


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return run_script(folder, per_device_train_batch_size=16, **SGD)


def test_accumulation_changes_nothing(one_process, tmp_path):
    """4 x 4 is 1 x 16 in both losses, all gradient norms and the weights."""
    parts = run_script(
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        **SGD,
    )
    assert_same_steps(parts, one_process)
    assert parts["masks"] == one_process["masks"]


@pytest.mark.parametrize(
    ("find_unused", "backend"),
    [(None, None), (False, None), (None, "eager")],
    ids=["two_phase", "joint", "compiled"],
)
def test_two_processes_are_one(one_process, tmp_path, find_unused, backend):
    """Two gloo ranks of 4 x 2 are one process of 16: masked-token counts differ by rank."""
    both = run_script(
        tmp_path,
        TORCHRUN,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        ddp_find_unused_parameters=find_unused,
        torch_compile_backend=backend,
        ddp_backend="gloo",
        **SGD,
    )
    apart = TERMS if find_unused is None else TERMS[:4]
    if find_unused is False:  # one backward pass measures no norms, so alpha stays at its start
        one_process = run_script(tmp_path, alpha=0.1, per_device_train_batch_size=16, **SGD)
    assert_same_steps(both, one_process, terms=apart)
    assert both["masks"] == one_process["masks"]


def test_micro_batches_without_masks_change_nothing(tmp_path):
    """They skip the first pass, whatever the step's other micro-batches and processes do."""
    # Of fewer than 13 tokens, none is masked.
    settings = {"mask_rate": 0.04, "pair": False, "max_steps": 10, **SGD}
    one = run_script(tmp_path, per_device_train_batch_size=4, **settings)
    masked = ["loss_mlm" in log for log in one["logs"]]
    assert any(masked) and not all(masked)
    settings |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    both = run_script(tmp_path, TORCHRUN, ddp_backend="gloo", **settings)
    assert_same_steps(both, one, sometimes=["loss_mlm"])


def test_two_processes_evaluate_and_measure_their_time(tmp_path):
    """Each has half of the 11 examples of dev, and knows the logits of all in their order."""
    options = {"dev": 11, "per_device_eval_batch_size": 2, "eval_strategy": "epoch", **SGD}
    both, one = tmp_path / "both", tmp_path / "one"
    both.mkdir(), one.mkdir()
    results = [
        run_script(both, TORCHRUN, per_device_train_batch_size=8, ddp_backend="gloo", **options),
        run_script(one, per_device_train_batch_size=16, **options),
    ]
    for result in results:
        assert result["kept"] == result["predicted"]
        seconds = result["seconds"]
        assert all(value > 0 for value in seconds.values()), seconds
    np.testing.assert_allclose(results[0]["kept"], results[1]["kept"], rtol=1e-4, atol=1e-5)


def test_masks_change_with_the_epoch(one_process):
    masks = one_process["masks"]
    examples_seen = {key.split("/")[0] for key in masks}
    assert len(examples_seen) == 64 and len(masks) == 128
    same = sum(masks[f"{i}/0"] == masks[f"{i}/1"] for i in examples_seen)
    assert same < 16


def test_killed_and_resumed_is_uninterrupted(tmp_path):
    """Also within an epoch, with dropout: the same masks and bit-equal weights."""
    options = {
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "dropout": True,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    expected = run_script(whole, **options)
    run_script(cut, expect=-9, kill_at=10, **options)
    resumed = run_script(cut, resume=str(cut / "run" / "checkpoint-9"), **options)
    assert resumed["weights"] == expected["weights"]
    assert resumed["masks"].keys() < expected["masks"].keys()
    assert all(expected["masks"][key] == value for key, value in resumed["masks"].items())
    assert resumed["logs"][-1]["loss"] == pytest.approx(expected["logs"][-1]["loss"], rel=1e-6)


def test_two_processes_resume_within_an_epoch(tmp_path):
    """In the second epoch, whose order the resumed processes must find again."""
    options = {
        "launcher": TORCHRUN,
        "per_device_train_batch_size": 8,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 6,
        "ddp_backend": "gloo",
    }
    whole, cut, rest = (tmp_path / name for name in ("whole", "cut", "rest"))
    for folder in (whole, cut, rest):
        folder.mkdir()
    expected = run_script(whole, max_steps=8, **options)  # an epoch has four steps
    run_script(cut, max_steps=6, **options)
    checkpoint = str(cut / "run" / "checkpoint-6")
    resumed = run_script(rest, max_steps=8, resume=checkpoint, **options)
    np.testing.assert_allclose(resumed["weights"], expected["weights"], rtol=1e-5, atol=1e-6)
    assert 0 < len(resumed["masks"]) == 32
    assert all(expected["masks"][key] == value for key, value in resumed["masks"].items())
    assert all(key.endswith("/1") for key in resumed["masks"])


def arguments(folder, **options):
    settings = {
        "output_dir": str(folder),
        "mask_rate": 0.2,
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
    }
    return MaskTuningArguments(**{**settings, **options})


def test_a_stock_classifier_and_a_stock_dataset_are_enough(tmp_path):
    """One import changed: the head comes from the same checkpoint, row numbers are the ids."""
    name = save_tiny(tmp_path / "model", "bert")
    rows = [{k: v for k, v in row.items() if k != "example_id"} for row in examples(16, 1)]
    rows = [{**row, "sentence": "raw text is dropped"} for row in rows]
    trainer = MaskTuningTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(name),
        args=arguments(tmp_path / "run"),
        train_dataset=Dataset.from_list(rows),
        eval_dataset={"a": Dataset.from_list(rows), "b": Dataset.from_list(rows[:4])},
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert {"eval_a_accuracy", "eval_b_accuracy", "eval_a_loss"} <= metrics.keys()
    assert trainer.train_dataset["example_id"][:3] == [0, 1, 2]


def test_a_16_bit_checkpoint_is_trained_in_float32(tmp_path, caplog):
    """transformers loads a float16 checkpoint as float16."""
    name = save_tiny(tmp_path / "model", "bert")
    AutoModelForMaskedLM.from_pretrained(name, dtype=torch.float16).save_pretrained(name)
    classifier = AutoModelForSequenceClassification.from_pretrained(name)
    assert classifier.dtype == torch.float16
    with caplog.at_level(logging.WARNING, "masktuning"):
        trainer = MaskTuningTrainer(
            model=classifier,
            args=arguments(tmp_path / "run"),
            train_dataset=Dataset.from_list(examples(16, 1)),
            processing_class=tiny_tokenizer(),
        )
    assert "was loaded in float16 and is trained in float32" in caplog.text
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_any_map_style_dataset_is_numbered_and_a_stream_is_refused():
    rows = [{"input_ids": [0, 9, 2], "labels": 0}, {"input_ids": [0, 8, 2], "example_id": 40}]
    numbered = with_example_ids(rows)
    assert len(numbered) == 2
    assert numbered[0]["example_id"] == 0 and numbered[1]["example_id"] == 40
    with pytest.raises(ValueError, match="a stream without an example_id column"):
        with_example_ids(Dataset.from_list(rows[:1]).to_iterable_dataset())
    mapped = Dataset.from_list(rows[1:]).to_iterable_dataset().map(lambda row: row)
    assert mapped.column_names is None and with_example_ids(mapped) is mapped
    with pytest.raises(UsageError, match="texts are made before training, which a stream does not"):
        perturbed_texts(None, None, mapped, None)


def test_options_set_after_construction_count(tmp_path):
    """A sweep sets names on the arguments and makes each run's model with model_init."""

    def norms(alpha):
        trainer = MaskTuningTrainer(
            model_init=lambda: AutoModelForSequenceClassification.from_pretrained(name),
            args=arguments(tmp_path / "run", max_steps=1),
            train_dataset=Dataset.from_list(examples(8, 1)),
            processing_class=tiny_tokenizer(),
        )
        trainer.args.alpha, trainer.args.mask_rate = alpha, 1.0
        trainer.train()
        log = trainer.state.log_history[0]
        return log["grad_norm_mlm"], log["grad_norm_cls"], trainer.method

    name = save_tiny(tmp_path / "model", "bert")
    (mlm, rest, _), (all_mlm, no_rest, _) = norms(0.5), norms(1.0)
    assert all_mlm == pytest.approx(2 * mlm, rel=1e-4)
    assert no_rest < 1e-5 * rest


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_batches_made_in_other_processes_are_the_same(tmp_path, context):
    """The model stays behind where the workers' collator is pickled."""
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments(tmp_path, dataloader_num_workers=1, seed=3),
        train_dataset=Dataset.from_list(examples(8, 1)),
        processing_class=tiny_tokenizer(),
    )
    here = trainer.collate(examples(8, 1))
    trainer.args.dataloader_multiprocessing_context = context
    loader = trainer.get_train_dataloader()
    content = pickle.dumps(loader.collate_fn)
    assert len(content) < 2 * sum(p.numel() for p in trainer.model.parameters())  # half of them
    (batch,) = loader
    order = [here["example_ids"].tolist().index(i) for i in batch["example_ids"].tolist()]
    assert sorted(order) == list(range(8)) and batch["num_masked"] == here["num_masked"]
    assert torch.equal(batch["maskable"], here["maskable"][order])


def test_a_collator_of_the_user_s_keeps_its_rate(tmp_path):
    collator = MaskTuningCollator(tiny_tokenizer(), mask_rate=1.0)
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments(tmp_path, mask_rate=0.05),
        data_collator=collator,
        train_dataset=Dataset.from_list(examples(8, 1)),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["num_masked"] == int(batch["maskable"].sum())


def test_best_model_is_loaded_at_the_end(tmp_path):
    trainer = MaskTuningTrainer(
        model=tiny_model("bart"),
        args=arguments(
            tmp_path,
            save_strategy="steps",
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            learning_rate=0.5,  # so that a later step is worse
            max_steps=3,
            load_best_model_at_end=True,
            metric_for_best_model="loss",
        ),
        train_dataset=Dataset.from_list(examples(16, 1)),
        eval_dataset=Dataset.from_list(examples(16, 2)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    best = min(log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(("method", "norms"), [("mask_tuning", True), ("finetuning", False)])
def test_gradient_norms_are_logged(tmp_path, method, norms):
    """||a * g_MLM + (1 - a) * g_CLS|| is the logged whole, and lies between the parts' bounds."""
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments(tmp_path, method=method),
        train_dataset=Dataset.from_list(examples(16, 1)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert ("grad_norm_mlm" in log) == norms
    if norms:
        whole, mlm, rest = (log[k] for k in ("grad_norm", "grad_norm_mlm", "grad_norm_cls"))
        assert abs(mlm - rest) <= whole * (1 + 1e-5) and whole <= (mlm + rest) * (1 + 1e-5)
        assert mlm > 0 and rest > 0 and 0 <= log["mlm_accuracy"] <= 1


def test_the_norms_are_those_of_the_two_terms(tmp_path):
    """Against gradients of each term taken alone with torch.autograd.grad."""
    model = tiny_model("roberta")
    rows = examples(8, 1)
    trainer = MaskTuningTrainer(
        model=model,
        args=arguments(tmp_path, alpha=0.6, seed=77, max_steps=1, max_grad_norm=0.1),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    batch = trainer.collate(rows)

    def norm(alpha, weight):
        gradients = expected_step(model, batch, alpha, epoch=0)[1]
        return weight * sum(float((g**2).sum()) for g in gradients.values()) ** 0.5

    expected_mlm, expected_rest = norm(1.0, 0.6), norm(0.0, 0.4)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["grad_norm_mlm"] == pytest.approx(expected_mlm, rel=1e-4)
    assert log["grad_norm_cls"] == pytest.approx(expected_rest, rel=1e-4)


def test_mixed_precision_trains(tmp_path):
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments(tmp_path, bf16=True),
        train_dataset=Dataset.from_list(examples(16, 1)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_a_nan_loss_reaches_the_log(tmp_path):
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.get_input_embeddings().weight[10:] = torch.nan
    trainer = MaskTuningTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=1),
        train_dataset=Dataset.from_list(examples(8, 1)),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert np.isnan(trainer.state.log_history[0]["loss"])


def test_new_head_weights_are_named(tmp_path, caplog):
    """A checkpoint with an encoder only: a warning, not an error."""
    from masktuning.modeling.shared_encoder import MaskTuningModel

    name = save_tiny(tmp_path, "bert")
    AutoModelForSequenceClassification.from_pretrained(name).base_model.save_pretrained(name)
    with caplog.at_level(logging.WARNING, "masktuning"):
        MaskTuningModel.from_pretrained(name)
    assert "newly initialised in BertForMaskedLM" in caplog.text
    assert "cls.predictions.transform.dense.weight" in caplog.text


def test_string_labels_are_an_error(tmp_path):
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments(tmp_path),
        train_dataset=[{**row, "labels": "good"} for row in examples(8, 1)],
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(ValueError, match="labels must be integers, not strings"):
        trainer.train()


def test_no_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="processing_class is missing"):
        MaskTuningTrainer(model=tiny_model("bert"), args=arguments(tmp_path))


def test_without_a_minimum_short_texts_stay_as_they_are(tmp_path):
    """Of texts of 9 words and fewer, 5 % is less than half a token."""
    rows = [
        {"input_ids": [0, *range(5, 5 + n), 2], "attention_mask": (n + 2) * [1], "labels": n % 2}
        for n in (1, 9, 10, 29, 30, 5, 3, 7)
    ]
    settings = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=MaskTuningArguments(
            str(tmp_path),
            min_per_example=0,
            per_device_train_batch_size=2,
            num_train_epochs=1,
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    batch = trainer.collate([{**row, "example_id": i} for i, row in enumerate(rows)])
    assert batch["offsets"].diff().tolist() == [0, 0, 1, 1, 2, 0, 0, 0]
    assert batch["num_masked"] == 4 and batch["max_masked"] == 2
    trainer.train()  # some of its batches have nothing to mask
    assert all(p.isfinite().all() for p in trainer.model.parameters())
