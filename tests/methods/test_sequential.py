"""Sequential training and its stage, the masked LM alone."""

import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from families import SPECIAL, examples, tiny_model, tiny_tokenizer
from oracles import counts_of, expected_masks
from stock_step import EPOCH, SEED, assert_same, make_batch, run_step, stock_twins

from masktuning import MaskTuningTrainer
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.demo import EMBEDDED
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.masked_lm import MaskedLM, MaskedLMOptions
from masktuning.methods.sequential import COLUMN, Sequential, SequentialOptions
from masktuning.methods.step import Step
from masktuning.training.arguments import arguments_for
from masktuning.training.job import read_job
from masktuning.training.method_collator import MethodCollator
from masktuning.training.stages import stage_job, started

FAMILIES = ["bert", "roberta", "distilbert"]


def sequential(model, **options):
    method = Sequential(model.train(), tiny_tokenizer(), SequentialOptions(**options))
    method.seed = SEED
    return method


def batch_of(method, rows, cache):
    prepared = method.prepare(rows, cache)
    chosen = [prepared[i] for i in range(len(rows))]
    return Batch.from_dict(MethodCollator(PaddingCollator(tiny_tokenizer()), method)(chosen))


def step_of(method, batch, epoch=EPOCH):
    """(loss, {name of the model's parameter: gradient}), and what was logged."""
    counts = {name: torch.tensor(float(value)) for name, value in method.counts(batch).items()}
    step = Step(torch.tensor([SEED, epoch]), counts)
    method.zero_grad()
    (loss,) = method.losses(batch, step)
    loss.backward()
    named = method.model.named_parameters()
    gradients = {n: p.grad for n, p in named if p.grad is not None}
    return (float(loss.detach()), gradients), step.logged


def expected_texts(mlm, batch, rate, least, epoch):
    """Stock predictions at the masked places, [B, L]."""
    ids = batch.input_ids
    maskable = ~torch.isin(ids, torch.tensor([*SPECIAL.values()]))
    words = maskable.sum(1).tolist()
    counts = [max(least, int(n * rate + 0.5)) for n in words]
    shown, places, _ = expected_masks(ids, maskable, batch.example_ids, counts, SEED, epoch)
    with torch.no_grad():
        logits = mlm.eval()(input_ids=shown, attention_mask=batch.attention_mask).logits
    banned = torch.tensor([i for i in SPECIAL.values() if i != SPECIAL["<unk>"]])
    perturbed = ids.clone()
    chosen = logits.flatten(0, 1)[places].index_fill(1, banned, -torch.inf).argmax(1)
    perturbed.view(-1)[places] = chosen
    return perturbed


@pytest.mark.parametrize("redraw", [False, True], ids=["static", "redraw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family, redraw, tmp_path):
    """Cross-entropy on the texts that the first weights perturbed, in float64."""
    model, rows = tiny_model(family), examples(6, 1)
    method = sequential(model, mask_rate=0.2, redraw=redraw)
    batch = batch_of(method, rows, tmp_path)
    _, vanilla = stock_twins(model)
    with torch.no_grad():  # an update, after which the masked LM predicts other tokens
        torch.manual_seed(2)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for epoch in (0, 2):
        perturbed = expected_texts(vanilla, batch, 0.2, 1, 2**31 + (epoch if redraw else 0))
        assert torch.equal(method.perturb(batch, torch.tensor([SEED, epoch])), perturbed)
        assert not torch.equal(perturbed, batch.input_ids)
        ours, logged = step_of(method, batch, epoch)
        classifier, _ = stock_twins(model)
        logits = classifier(input_ids=perturbed, attention_mask=batch.attention_mask).logits
        loss = F.cross_entropy(logits, batch.labels)
        loss.backward()
        named = {f"classifier.{name}": p.grad for name, p in classifier.named_parameters()}
        expected = {name: gradient for name, gradient in named.items() if gradient is not None}
        assert_same(ours, (float(loss.detach()), expected), 1e-4)
        same = (perturbed == batch.input_ids).all(1).float().mean()
        assert float(logged["same_text_share"]) == pytest.approx(float(same))


@pytest.mark.parametrize("as_table", [True, False], ids=["datasets", "list"])
def test_the_column_is_as_the_texts_are(as_table, tmp_path):
    rows = examples(5, 3)
    method = sequential(tiny_model("bert"), mask_rate=0.3)
    prepared = method.prepare(Dataset.from_list(rows) if as_table else rows, tmp_path)
    for i, row in enumerate(rows):
        made = prepared[i]
        assert {name: made[name] for name in row} == row
        assert len(made[COLUMN]) == len(row["input_ids"]) and made[COLUMN] != row["input_ids"]
    method.tokenizer.padding_side = "left"
    chosen = [prepared[i] for i in range(5)]
    pad = PaddingCollator(method.tokenizer)
    batch = Batch.from_dict(MethodCollator(pad, method)(chosen))
    real = batch.attention_mask.bool()
    for i in range(5):
        assert batch.columns[COLUMN][i][real[i]].tolist() == prepared[i][COLUMN]
        assert bool((batch.columns[COLUMN][i][~real[i]] == SPECIAL["<pad>"]).all())


def test_a_data_loader_may_pickle_it(tmp_path):
    rows = examples(4, 3)
    method = sequential(tiny_model("bert"), redraw=True)
    pickled = pickle.dumps(MethodCollator(PaddingCollator(tiny_tokenizer()), method))
    parameters = sum(p.numel() * p.element_size() for p in method.parameters())
    assert len(pickled) < parameters / 4
    batch = pickle.loads(pickled)(rows)
    assert batch["num_masked"] == batch_of(method, rows, tmp_path).num_masked >= 4


def test_the_stage_and_where_the_run_starts(tmp_path):
    words = ["--method", "sequential", "--output_dir", str(tmp_path / "out"), "--seed", "7"]
    words += ["--mlm_mask_rate", "0.15", "--eval_ood", "epoch", "--num_train_epochs", "2"]
    words += ["--load_best_model_at_end", "--metric_for_best_model", "accuracy"]
    words += ["--save_strategy", "epoch", "--eval_strategy", "epoch"]
    job = read_job(words, EMBEDDED)
    (stage,) = Sequential.stages(job.training)
    made = stage_job(job, stage)
    training = made.training
    assert training.method == "masked_lm" and training.mask_rate == 0.15
    assert (training.num_train_epochs, training.seed) == (2, 7)
    assert (training.do_eval, training.eval_strategy.value) == (False, "no")
    assert not training.load_best_model_at_end and made.run.eval_ood == "end"
    assert made.start is None and started(job).start == made.folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_masked_lm_alone_is_mask_tuning_with_alpha_1(family):
    model, batch = tiny_model(family), make_batch()
    method = MaskedLM(model.train(), tiny_tokenizer(), MaskedLMOptions(0.2, 0))
    loss, gradients = step_of(method, Batch.from_dict(batch))[0]
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    expected_loss, expected = run_step(model, batch, 1.0)
    assert loss == expected_loss
    heads = {name for name, gradient in expected.items() if not gradient.any()}
    assert heads and all(name.startswith("classifier.") for name in heads)
    assert gradients.keys() <= expected.keys() and expected.keys() - gradients.keys() <= heads
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_masked_lm_s_loss_and_gradients(family):
    model, batch = tiny_model(family), make_batch()
    method = MaskedLM(model.train(), tiny_tokenizer(), MaskedLMOptions(0.2, 0))
    ours = step_of(method, Batch.from_dict(batch))[0]
    _, mlm = stock_twins(model)
    ids = batch["input_ids"]
    maskable = ~torch.isin(ids, torch.tensor([*SPECIAL.values()]))
    counts = counts_of(maskable, 0.2)
    shown, places, targets = expected_masks(
        ids, maskable, batch["example_ids"], counts, SEED, EPOCH
    )
    logits = mlm(input_ids=shown, attention_mask=batch["attention_mask"]).logits.flatten(0, 1)
    log_p = logits.double().log_softmax(-1)[places, torch.tensor(targets)]
    loss = -log_p.mean()
    loss.backward()
    prefix = f"{mlm.base_model_prefix}."
    expected = {}
    for name, p in mlm.named_parameters():  # tied parameters once, by the encoder's name
        if p.grad is not None and name.startswith(prefix):
            expected[f"classifier.{name}"] = p.grad
        elif p.grad is not None:
            expected[f"mlm_head.mlm.{name}"] = p.grad
    assert_same(ours, (float(loss.detach()), expected))


def trainer_of(folder, method, **settings):
    args = arguments_for(method)(
        str(folder),
        max_steps=3,
        weight_decay=0.1,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        **settings,
    )
    return MaskTuningTrainer(
        model=tiny_model("bert"),
        args=args,
        train_dataset=Dataset.from_list(examples(16, 3)),
        processing_class=tiny_tokenizer(),
    )


def test_the_stage_leaves_the_classifier_s_head_alone(tmp_path):
    trainer = trainer_of(tmp_path, "masked_lm")
    model = trainer.method.model
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer.train()
    same = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert {name for name in before if name.startswith("classifier.classifier.")} <= same
    assert not any("encoder.layer" in name or name.startswith("mlm_head") for name in same)
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(first["loss_mlm"], rel=1e-6) and "loss_cls" not in first
    assert "its accuracy means nothing" in trainer.method.advice({})


@pytest.mark.parametrize("redraw", [False, True])
def test_it_trains_and_leaves_the_masked_lm_s_head_alone(tmp_path, redraw, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(tmp_path, "sequential", redraw=redraw)
        model = trainer.method.model
        shared = set(model.classifier.parameters())
        own = [p for p in model.mlm_head.parameters() if p not in shared]
        before = [p.clone() for p in own]
        trainer.train()
    assert own and all(torch.equal(a, b) for a, b in zip(own, before, strict=True))
    assert "same_text_share" in trainer.state.log_history[0]
    assert "loss_cls" in trainer.state.log_history[0]


def test_alpha_1_says_what_it_means():
    options = MaskTuningOptions(alpha=1.0)
    method = MaskTuning(tiny_model("bert"), tiny_tokenizer(), options)
    told = method.advice({"train_grad_norm_mlm": 1.0, "train_grad_norm_cls": 0.0})
    assert told.startswith("With --alpha 1 only the masked LM is trained")


def test_options_out_of_range_are_one_line():
    with pytest.raises(ValueError, match="mlm_mask_rate is 0: give a share above 0, up to 1"):
        SequentialOptions(mlm_mask_rate=0).check()
    with pytest.raises(ValueError, match="top_k is 65: give a number from 1 to 64"):
        SequentialOptions(top_k=65).check()
    with pytest.raises(ValueError, match="min_per_example is -1: give 0 or more"):
        MaskedLMOptions(min_per_example=-1).check()
