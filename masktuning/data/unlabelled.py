"""The texts of --test_file, for which labels are predicted: a label column is not read."""

from __future__ import annotations

from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments
from masktuning.data.custom_task import text_columns
from masktuning.data.hub import read_hub
from masktuning.data.load import LabelledTexts, texts_of
from masktuning.data.readers import read_table
from masktuning.tasks import SetSpec, Task

TEST_FILE = "test_file"  # the name and the role of the set; some tasks have a set called test
_SPLIT = "test"
_IGNORED = -100


def load_test(data: DataArguments, task: Task | None) -> LabelledTexts:
    """The texts of --test_file or, without it, of the split test of --dataset_name.

    Their columns are those that the flags name, or those of the task's dev set, or the usual names.
    The label of every row is -100.

    Raises:
        UsageError: if there is no such file or split, if it cannot be read, or if the training
            file is given.
    """
    if data.test_file:
        if data.train_file and Path(data.test_file).resolve() == Path(data.train_file).resolve():
            raise UsageError("--test_file and --train_file are the same file: give another one")
        table = read_table(data.test_file)
    elif data.dataset_name:
        table = read_hub(data.dataset_name, _SPLIT, data.dataset_config_name)
    else:
        raise UsageError("--do_predict needs --test_file: the texts to predict labels for")
    dev = task.with_role("dev") if task else []
    columns = text_columns(data, table, dev[0].text if dev else [])
    spec = SetSpec(TEST_FILE, TEST_FILE, columns)
    texts = [texts_of(table, column, spec) for column in columns]
    return LabelledTexts(TEST_FILE, TEST_FILE, texts, [_IGNORED] * len(table.lines))
