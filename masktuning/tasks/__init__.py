"""Tasks: label names, sets and default settings, one YAML file per task.

    name: sst2
    description: one line
    labels: [negative, positive]        # in the order of their ids
    settings: {alpha: 0.6, ...}         # defaults for the flags of masktuning.train
    methods: {cutoff: {...}}            # settings for one method, which override `settings`
    include: {mnli: [hans]}             # sets of another task, out of distribution here
    sets:
      train:
        role: train                     # train, dev (in distribution) or ood
        text: [sentence]                # one column, or two for sentence pairs
        label: label
        label_names: {"0": negative}    # label in the file: label name, where the two differ
        file: sst2/train.tsv            # under --data_dir; or a folder with one folder per label
        hub: {id: ..., config: ..., split: ..., revision: ..., columns: {theirs: ours}}
        url: where the authors publish it

Every other key of a set is a field of `SetSpec` (spec.py) and is explained there.
"""

from masktuning.tasks.load import load_task, names
from masktuning.tasks.spec import PROTOCOLS, ROLES, SetSpec, Task

__all__ = ["PROTOCOLS", "ROLES", "SetSpec", "Task", "load_task", "names"]
