"""A loss that would be ignored is refused, with what to do instead."""

import pytest
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer

from masktuning import MaskTuningArguments, MaskTuningTrainer


def make(folder, cls=MaskTuningTrainer, problem_type=None, **arguments):
    model = tiny_model("bert")
    model.config.problem_type = problem_type
    return cls(
        model=model,
        args=MaskTuningArguments(str(folder), use_cpu=True, report_to="none"),
        train_dataset=Dataset.from_list(examples(4, 1)),
        processing_class=tiny_tokenizer(),
        **arguments,
    )


class WithItsOwnLoss(MaskTuningTrainer):
    def compute_loss(self, model, inputs, **unused):
        return model(**inputs).logits.sum()


def test_a_function_that_computes_the_loss(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func would not be used"):
        make(tmp_path, compute_loss_func=lambda outputs, labels: outputs.logits.sum())


def test_an_overridden_compute_loss(tmp_path):
    with pytest.raises(ValueError, match=r"WithItsOwnLoss\.compute_loss would not be used"):
        make(tmp_path, WithItsOwnLoss)


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_another_kind_of_labels(tmp_path, problem_type):
    with pytest.raises(ValueError, match=f"problem_type is '{problem_type}'"):
        make(tmp_path, problem_type=problem_type)


def test_what_is_supported_is_not_refused(tmp_path):
    class Ours(MaskTuningTrainer):
        """A subclass that changes something else."""

    make(tmp_path, Ours, problem_type="single_label_classification", compute_loss_func=None)
