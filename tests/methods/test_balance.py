"""`--alpha auto` against its equation, in float64, and the gradients it is measured on."""

import logging
import math

import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from stock_step import assert_same, expected_step, make_batch, run_step

from masktuning import MaskTuningArguments, MaskTuningTrainer
from masktuning.methods.balance import SHARE, START, GradientBalance, last_layer_parameters
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.training.arguments import method_options


def trainer_of(folder, model, rows, **settings):
    settings = {"max_steps": 1, "logging_steps": 1, "report_to": "none", "seed": 77, **settings}
    settings |= {"output_dir": str(folder), "disable_tqdm": True, "save_strategy": "no"}
    return MaskTuningTrainer(
        model=model,
        args=MaskTuningArguments(mask_rate=0.2, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )


def test_alpha_follows_the_running_means_of_the_norms():
    measured = [(4.0, 2.0), (8.0, 1.0), (6.0, 0.5)]  # unweighted norms of both gradients
    balance = GradientBalance()
    mean = None
    alpha = START
    assert float(balance.alpha()) == pytest.approx(START)
    for mlm, cls in measured:
        balance.update(torch.tensor(alpha * mlm), torch.tensor((1 - alpha) * cls))
        mean = (
            (mlm, cls)
            if mean is None
            else tuple(0.9 * old + 0.1 * new for old, new in zip(mean, (mlm, cls), strict=True))
        )
        # The alpha that solves alpha * |g_MLM| = SHARE * (1 - alpha) * |g_CLS|.
        ratio = SHARE * mean[1] / mean[0]
        alpha = ratio / (1 + ratio)
        assert float(balance.alpha()) == pytest.approx(alpha, rel=1e-5)


@pytest.mark.parametrize("useless", [(0.0, 1.0), (math.inf, math.inf), (math.nan, 1.0)])
def test_a_step_that_measured_nothing_changes_nothing(useless):
    """No token was masked, or a gradient overflowed in float16."""
    balance = GradientBalance()
    for norms in (useless, (0.2, 3.0), useless):
        before = float(balance.alpha())
        balance.update(*map(torch.tensor, norms))
        if norms is useless:
            assert float(balance.alpha()) == before
    assert float(balance.alpha()) != pytest.approx(START)


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_the_norms_are_of_the_last_layer(tmp_path, family):
    model, rows = tiny_model(family), examples(8, 1)
    names = {id(p): name for name, p in model.named_parameters()}
    last = [names[id(p)] for p in last_layer_parameters(model.encoder)]
    layers = {name.rsplit("layer", 1)[1].split(".")[1] for name in last}
    assert layers == {str(len(model.encoder.encoder.layer) - 1)} if family == "bert" else layers
    trainer = trainer_of(tmp_path, model, rows, per_device_train_batch_size=8)
    batch = trainer.collate(rows)

    def norm(alpha):
        gradients = expected_step(model, batch, alpha, epoch=0)[1]
        return sum(float((gradients[n] ** 2).sum()) for n in last if n in gradients) ** 0.5

    expected = [norm(1.0), norm(0.0)]
    trainer.train()
    assert trainer.method.balance.norms.tolist() == pytest.approx(expected, rel=1e-4)
    assert trainer.state.log_history[0]["alpha"] == pytest.approx(START)


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "joint"])
def test_the_step_is_that_of_the_alpha(apart):
    """The tensor of `auto` and the same number give the same loss and gradients."""
    model, batch = tiny_model("bert"), make_batch()
    assert_same(run_step(model, batch, "auto", apart), expected_step(model, batch, START))


def test_a_resumed_run_goes_on_with_its_alpha(tmp_path):
    rows = examples(16, 1)
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "steps"}

    def alphas(folder, resume=None, **more):
        trainer = MaskTuningTrainer(
            model=tiny_model("bert"),
            args=MaskTuningArguments(
                str(tmp_path / folder),
                logging_steps=1,
                report_to="none",
                disable_tqdm=True,
                **{**settings, "save_steps": 2, **more},
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tiny_tokenizer(),
        )
        trainer.train(resume_from_checkpoint=resume)
        return [log["alpha"] for log in trainer.state.log_history if "alpha" in log]

    whole = alphas("run")
    assert len(set(whole)) == 4 and whole[0] == pytest.approx(START)
    resumed = alphas("run", resume=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed == pytest.approx(whole, rel=1e-6)


def test_one_backward_pass_leaves_alpha_at_its_start(caplog):
    model, batch = tiny_model("bert"), make_batch()
    with caplog.at_level(logging.WARNING, "masktuning"):
        run_step(model, batch, "auto", apart=False)
    assert "alpha stays at 0.1: --alpha auto needs a backward pass for each term" in caplog.text


def test_a_number_keeps_nothing():
    method = MaskTuning(tiny_model("bert"), tiny_tokenizer(), MaskTuningOptions(alpha=0.3))
    assert method.balance is None and method.watched_parameters() == []
    assert all(name.startswith("model.") for name in method.state_dict())


def test_a_search_may_give_the_number_as_a_string():
    """Trainer's hyper-parameter search makes each value one of the old value's type."""
    args = MaskTuningArguments("out", report_to="none")
    args.alpha = "0.3"
    assert method_options(args).alpha == 0.3


def test_a_checkpoint_of_a_fixed_alpha_can_be_resumed(tmp_path, caplog):
    tokenizer = tiny_tokenizer()
    MaskTuning(tiny_model("bert"), tokenizer, MaskTuningOptions(0.3)).save_pretrained(tmp_path)
    method = MaskTuning(tiny_model("bert"), tokenizer, MaskTuningOptions())
    method.after_step({"mlm": torch.tensor(1.0), "cls": torch.tensor(1.0)})
    method.load_weights(tmp_path)
    assert "alpha starts at 0.1 now" in caplog.text
    assert float(method.balance.alpha()) == pytest.approx(START)


def test_a_small_masked_lm_gradient_does_not_silence_the_classifier():
    balance = GradientBalance()
    balance.update(torch.tensor(START * 1e-6), torch.tensor((1 - START) * 1.0))
    assert float(balance.alpha()) == 0.5


@pytest.mark.parametrize("alpha", ["automatic", 1.5, None, True])
def test_other_alphas_are_refused(alpha):
    with pytest.raises(ValueError, match=f"alpha is {alpha}: give a number from 0 to 1, or auto"):
        MaskTuningArguments("out", alpha=alpha, report_to="none")
