"""Few-shot prompting: prompts, likelihoods, the file of answers, the command with a local model."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from causal_lm import byte_tokenizer, save_causal_lm
from families import save_tiny
from layouts import HANS, NLI, QUESTIONS, write_layouts
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from masktuning import evaluate
from masktuning.config.errors import UsageError
from masktuning.data.load import LabelledTexts
from masktuning.evaluation.fewshot.answers import FILE, AnswerFile
from masktuning.evaluation.fewshot.local import likelihood_scorer, load_causal_lm
from masktuning.evaluation.fewshot.prompts import demonstrations, prompts, template_of
from masktuning.evaluation.metrics import NO_LABEL, f1, likeliest, probabilities

ANSWERS = ["entailment", "neutral", "contradiction"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return save_causal_lm(tmp_path_factory.mktemp("lm"))


def ask(model, data, out, *words):
    """results.json of one call of the command."""
    evaluate.main(
        ["--predictor", "fewshot", "--fewshot_model", str(model), "--data_dir", str(data)]
        + ["--shots", "1", "--output_dir", str(out), *map(str, words)]
    )
    return json.loads((out / "results.json").read_text())


def float64_scores(folder, prompt, answers):
    """The log-likelihood of each answer by the stock model, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start = len(tokenizer(prompt.rstrip(" "))["input_ids"])
    scores = []
    for answer in answers:
        ids = tokenizer(prompt + answer)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].numpy()
        score = 0.0
        for t in range(start, len(ids)):
            row = logits[t - 1]
            top = row.max()
            score += row[ids[t]] - top - np.log(np.exp(row - top).sum())
        scores.append(score)
    return scores


def predictions(folder, name):
    lines = (folder / f"predictions_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# Prompts


def test_a_prompt_is_in_the_format_of_the_paper():
    train = LabelledTexts("train", "train", [["A  b", "C\nd", "E"], ["F", "G", "H"]], [2, 0, 1])
    texts = LabelledTexts("dev", "dev", [["I", "K"], ["J", "L"]], [0, 0])
    found = prompts(template_of(ANSWERS, 2), train, [1, 0], texts)
    question = "What is the relationship between these two sentences?"
    shown = (
        f"C d\nG\n{question}\nAnswer: entailment\n\nA b\nF\n{question}\nAnswer: contradiction\n\n"
    )
    assert found == [f"{shown}{a}\n{question}\nAnswer: " for a in ("I\nJ", "K\nL")]


@pytest.mark.parametrize(
    ("labels", "columns", "question", "answers"),
    [
        (["Neutral", "entailment", "CONTRADICTION"], 2, "What is the relationship between these "
         "two sentences?", ["neutral", "entailment", "contradiction"]),
        (["not_duplicate", "duplicate"], 2, "Are these two questions asking the same thing?",
         ["no", "yes"]),
        (["entailment", "non-entailment"], 2, "Can the second sentence be inferred from the first "
         "sentence?", ["yes", "no"]),
        (["not_entailment", "entailment"], 2, "Which label fits these two texts: not_entailment "
         "or entailment?", ["not_entailment", "entailment"]),
        (ANSWERS, 1, "Which label fits this text: entailment, neutral or contradiction?", ANSWERS),
    ],
)  # fmt: skip
def test_the_question_follows_from_the_labels(labels, columns, question, answers):
    found = template_of(labels, columns)
    assert (found.question, found.answers) == (question, answers)


def test_demonstrations_are_balanced_mixed_and_seeded():
    label_ids = [0] * 60 + [1] * 30 + [2] * 10
    chosen = demonstrations(label_ids, ANSWERS, 8, seed=1)
    assert chosen == demonstrations(label_ids, ANSWERS, 8, seed=1)
    assert set(chosen) != set(demonstrations(label_ids, ANSWERS, 8, seed=2))
    shown = [label_ids[i] for i in chosen]
    assert [shown.count(c) for c in range(3)] == [8, 8, 8] and len(set(chosen)) == 24
    assert shown != sorted(shown) and shown[:8] != [0] * 8
    assert set(demonstrations(label_ids, ANSWERS, 4, seed=1)) < set(chosen)
    with pytest.raises(UsageError, match=r"--shots 11: .* only 10 examples of 'contradiction'"):
        demonstrations(label_ids, ANSWERS, 11, seed=1)
    with pytest.raises(UsageError, match="has no example of 'contradiction'"):
        demonstrations(label_ids[:90], ANSWERS, 1, seed=1)


# Likelihoods


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("cached", [True, False])
def test_likelihoods_are_those_of_one_sequence_at_a_time_in_float64(
    lm, monkeypatch, cached, batch_size
):
    scorer = likelihood_scorer(str(lm), None, None, batch_size)
    scorer.use(load_causal_lm(str(lm), None))
    if not cached:
        monkeypatch.setattr(scorer, "_computed", lambda prefix: None)
    head = "So dull.\nWhich?\nAnswer: no\n\n"
    asked = [
        f"{head}{text}\nWhich?\nAnswer: " for text in ("a", "Fine film", "é?", "Sold", "a b c")
    ]
    answers = ["yes", "no", "neutral", "not at all"]
    found = dict(scorer.ask(asked, answers))
    assert len(found) == 5 and (scorer._cache is not None) == cached
    for i, prompt in enumerate(asked):
        assert found[i] == pytest.approx(float64_scores(lm, prompt, answers), abs=2e-4)


def test_likelihoods_in_float64_agree_closely_and_single_tokens_are_computed_once(lm):
    scorer = likelihood_scorer(str(lm), None, None, 8)
    scorer.use(load_causal_lm(str(lm), None).double())
    sizes = []
    scorer.model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    asked = ["One two\nAnswer: ", "One three four\nAnswer: "]
    (first, second) = (found for _, found in sorted(scorer.ask(asked, ["yes", "no"])))
    assert first == pytest.approx(float64_scores(lm, asked[0], ["yes", "no"]), abs=1e-4)
    assert second == pytest.approx(float64_scores(lm, asked[1], ["yes", "no"]), abs=1e-4)
    shared = len("One t")
    assert sizes == [(1, shared), (2, len(asked[1].rstrip()) - shared)]


def test_a_beginning_of_text_token_and_another_family(tmp_path):
    """Llama's rotary positions, and a tokenizer that begins each text with a token."""
    tokenizer = byte_tokenizer(64, begins=True)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    scorer = likelihood_scorer(str(tmp_path), None, None, 8)
    scorer.use(load_causal_lm(str(tmp_path), None))
    asked = ["ab\nAnswer: ", "abc\nAnswer: "]
    found = dict(scorer.ask(asked, ["yes", "neither"]))
    model = AutoModelForCausalLM.from_pretrained(tmp_path).double().eval()
    for i, prompt in enumerate(asked):
        for answer, score in zip(["yes", "neither"], found[i], strict=True):
            ids = tokenizer(prompt + answer)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id
            start = len(tokenizer(prompt.rstrip())["input_ids"])
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(float(logp[t - 1, ids[t]]) for t in range(start, len(ids)))
            assert score == pytest.approx(expected, abs=2e-4)


# The file of answers


def test_a_torn_last_line_is_dropped_and_the_rest_stays(tmp_path):
    path = tmp_path / FILE
    file = AnswerFile(path)
    file.add("a", [1.5, float("-inf")])
    file.add("b", "é\n")
    whole = path.read_bytes()
    for cut in range(len(whole.splitlines()[0]) + 2, len(whole)):
        path.write_bytes(whole[:cut])
        again = AnswerFile(path)
        assert again["a"] == [1.5, float("-inf")] and "b" not in again
        assert path.read_bytes() == whole[:cut], "reading alone changes nothing"
        again.add("c", "yes")
        assert path.read_bytes().startswith(whole.splitlines(keepends=True)[0])
        assert AnswerFile(path)["c"] == "yes" and len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("line", ["{", "7", '{"key": "a"}'])
def test_a_broken_line_within_is_an_error_with_its_number(tmp_path, line):
    path = tmp_path / FILE
    path.write_text(f'{{"key": "a", "answer": "yes"}}\n{line}\n')
    with pytest.raises(UsageError, match=rf"{FILE}, line 2: not an answer .* remove that line"):
        AnswerFile(path)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"missing/answers: cannot be written \(No such file"):
        AnswerFile(tmp_path / "missing" / "answers").add("a", "yes")


# Answers that are no label


def test_no_label_is_wrong_for_every_score():
    logits = np.array([[0.0, -np.inf], [-np.inf, -np.inf], [-np.inf, 0.0]])
    assert likeliest(logits).tolist() == [0, NO_LABEL, 1]
    assert probabilities(logits).tolist() == [[1, 0], [0, 0], [0, 1]]
    labels = np.array([0, 0, 1])
    assert f1(likeliest(logits), labels, 0)[0] == 2 / 3
    assert f1(likeliest(logits), labels, None)[0] == pytest.approx((2 / 3 + 1) / 2)
    _, low, high = f1(likeliest(logits), labels, None)
    assert 0 <= low < 5 / 6 < high <= 1


# The command


def test_help_imports_no_torch():
    code = (
        "import sys; from masktuning import evaluate; evaluate.main(['--help']); "
        "assert not {'torch', 'datasets', 'openai'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"--{name}" in done.stdout for name in ("predictor", "fewshot_model", "shots"))


def test_hans_and_anli_with_a_local_model(lm, data, tmp_path, capsys):
    sets = ["--task", "mnli", "--sets", "hans", "anli_dev", "dev_matched"]
    results = ask(lm, data, tmp_path, *sets)
    printed = capsys.readouterr()
    assert "counted with the model's tokenizer" in printed.out and "accuracy" in printed.out
    assert "anli_dev" in printed.out and results["eval_anli_dev_samples"] == 15
    train = LabelledTexts("train", "train", [[r[0] for r in NLI], [r[1] for r in NLI]],
                          [ANSWERS.index(r[2]) for r in NLI])  # fmt: skip
    template = template_of(["entailment", "non-entailment"], 2)
    condensed = [min(label, 1) for label in train.labels]
    rows = demonstrations(condensed, ["entailment", "non-entailment"], 1, seed=42)
    first = "".join(
        template.solved([column[i] for column in train.texts], condensed[i]) for i in rows
    )
    assert first.count("Answer: yes") == first.count("Answer: no") == 1
    found = predictions(tmp_path, "hans")
    for row, one in zip(HANS, found, strict=True):
        scores = float64_scores(lm, first + template.unsolved(row[1:3]), ["yes", "no"])
        assert one["prediction"] == ["entailment", "non-entailment"][int(np.argmax(scores))]
        p = np.exp(scores) / np.exp(scores).sum()
        assert list(one["probabilities"].values()) == pytest.approx(p, abs=1e-3)
        assert one["label"] == row[0]
    correct = [one["prediction"] == one["label"] for one in found]
    assert results["eval_hans_accuracy"] == np.mean(correct)
    assert "eval_hans_subsequence_entailment_accuracy" in results
    assert not {"eval_hans_accuracy_sum", "eval_hans_no_label"} & set(results)
    assert set(predictions(tmp_path, "anli_dev")[0]["probabilities"]) == set(ANSWERS)


def totals(printed):
    """The figures of the table of costs: prompts, answered before, to ask, tokens."""
    return next(line.split()[1:] for line in printed.splitlines() if line.startswith("total"))


def test_a_second_run_asks_nothing_and_gives_the_same(lm, data, tmp_path, capsys):
    words = ["--task", "qqp", "--sets", "dev", "paws_qqp", "--disable_tqdm"]
    first = ask(lm, data, tmp_path, *words)
    lines = (tmp_path / FILE).read_text().splitlines()
    # QUESTIONS are the rows of all three sets, so PAWS has nothing new.
    printed = capsys.readouterr()
    assert len(lines) == len(QUESTIONS) and "%|" not in printed.err
    assert totals(printed.out)[:3] == ["10", "0", "5"]
    second = ask(lm, data, tmp_path, *words)
    assert second == first and (tmp_path / FILE).read_text().splitlines() == lines
    assert totals(capsys.readouterr().out) == ["10", "10", "0", "0"]
    ask(lm, data, tmp_path, *words, "--max_eval_samples", 2, "--seed", 3)
    assert len((tmp_path / FILE).read_text().splitlines()) > len(lines), "other examples are shown"
    again = save_causal_lm(tmp_path / "other", seed=1)
    ask(again, data, tmp_path, *words, "--max_eval_samples", 1, "--seed", 3)
    capsys.readouterr()
    os.utime(again / "model.safetensors", (1, 1))  # as when it was trained again
    ask(again, data, tmp_path, *words, "--max_eval_samples", 1, "--seed", 3)
    assert totals(capsys.readouterr().out)[:3] == ["2", "0", "1"]


def test_a_dry_run_counts_and_writes_nothing(lm, data, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise AssertionError("a dry run loads no model")

    monkeypatch.setattr("masktuning.evaluation.fewshot.run.load_causal_lm", fail)
    words = ["--predictor", "fewshot", "--fewshot_model", str(lm), "--data_dir", str(data)]
    evaluate.main(
        [*words, "--task", "sst2", "--sets", "dev", "--shots", "1", "--dry_run", "--quiet"]
    )
    header, _, row, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == "set prompts answered before to ask their tokens".split()
    train = LabelledTexts("train", "train", [['a "fine film', "so dull"]], [1, 0])
    texts = LabelledTexts("dev", "dev", [["it 's \"it", "bad"]], [1, 0])
    asked = prompts(template_of(["negative", "positive"], 1), train, [0, 1], texts)
    tokenizer = AutoTokenizer.from_pretrained(lm)
    count = sum(len(tokenizer(prompt + "negative")["input_ids"]) for prompt in asked)
    assert row.split() == ["dev", "2", "0", "2", f"{count:,}"]
    assert not [*tmp_path.iterdir()]


def test_own_files_and_a_test_file(lm, tmp_path, capsys):
    rows = [f"text {i},{['calm', 'angry'][i % 2]}" for i in range(6)]
    (tmp_path / "train.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "mails.csv").write_text("text,label\nhello,calm\nhelp,angry\n")
    (tmp_path / "new.csv").write_text("text\nwhat\n")
    words = ["--train_file", tmp_path / "train.csv", "--shots", 2]
    words += [
        "--eval_files",
        f"mails={tmp_path / 'mails.csv'}",
        "--test_file",
        tmp_path / "new.csv",
    ]
    results = ask(lm, tmp_path, tmp_path / "out", *words)
    assert results["eval_mails_samples"] == 2
    (one,) = predictions(tmp_path / "out", "test_file")
    assert one["prediction"] == max(one["probabilities"], key=one["probabilities"].get)
    assert "the predicted labels of 1 texts" in capsys.readouterr().out
    only = [*words[:4], *words[6:]]
    evaluate.main(["--predictor", "fewshot", "--fewshot_model", str(lm), *map(str, only)]
                  + ["--output_dir", str(tmp_path / "only")])  # fmt: skip
    assert predictions(tmp_path / "only", "test_file") == [one]
    assert not (tmp_path / "only" / "results.json").exists()


FEW = ["--predictor", "fewshot", "--fewshot_model", "m"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_name_or_path", "m", "--shots", "4"], "--shots is for --predictor fewshot"),
        (["--combine", "a", "b", "--dry-run"], "--dry_run is for --predictor fewshot"),
        (["--predictor", "fewshot"], "--fewshot_model is missing"),
        ([*FEW, "--task", "qqp"], "needs --output_dir"),
        ([*FEW], "give --task, or --train_file"),
        ([*FEW, "--train_file", "a.csv"], "no texts to label"),
        ([*FEW, "--task", "qqp", "--train_file", "a.csv"], "brings its own training set"),
        ([*FEW, "--model_name_or_path", "m"], "--model_name_or_path is not for"),
        ([*FEW, "--max_seq_length=9"], "--max_seq_length is not for .* not truncated"),
        ([*FEW, "--fewshot_base_url", "u"], "needs --fewshot_backend completions or chat"),
        ([*FEW, "--fewshot_backend", "chat", "--tokenizer_name", "t"], "is for --fewshot_backend"),
        ([*FEW, "--shots", "0"], "shots is 0: give 1 or more"),
        ([*FEW, "--fewshot_backend", "curl"], "invalid choice: 'curl'"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(words, message):
    with pytest.raises(UsageError, match=message) as caught:
        evaluate.main(words)
    assert "\n" not in str(caught.value)


def test_models_and_prompts_that_cannot_be_used(lm, data, tmp_path):
    words = ["--task", "sst2", "--sets", "dev"]
    short = save_causal_lm(tmp_path / "short", length=100)
    with pytest.raises(UsageError, match=r"a prompt has \d+ tokens, but the model takes 100"):
        ask(short, data, tmp_path / "out", *words)
    with pytest.raises(UsageError, match=r"--shots 3: .* only 2 examples of 'negative'"):
        ask(lm, data, tmp_path / "out", *words, "--shots", 3)
    save_tiny(tmp_path / "bert", "bert")
    with pytest.raises(UsageError, match="bert is no causal language model"):
        ask(tmp_path / "bert", data, tmp_path / "out", *words)
    with pytest.raises(UsageError, match="no such folder"):
        ask(tmp_path / "lost", data, tmp_path / "out", *words)
    config = json.loads((lm / "config.json").read_text())
    broken = save_causal_lm(tmp_path / "broken")
    (broken / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(UsageError, match="is no trained language model"):
        ask(broken, data, tmp_path / "out", *words)


def test_a_model_without_cache_and_logits_to_keep(lm):
    """Models of transformers differ in what forward takes and in what it returns."""
    scorer = likelihood_scorer(str(lm), None, None, 8)
    whole = load_causal_lm(str(lm), None)
    scorer.use(whole)
    expected = scorer.log_likelihoods(["ab\nAnswer: "], ["yes", "neither"])

    class Plain(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
            assert past_key_values is None
            return SimpleNamespace(logits=whole(input_ids, attention_mask=attention_mask).logits)

    scorer._prefix = ()
    scorer.use(Plain())
    found = scorer.log_likelihoods(["ab\nAnswer: "], ["yes", "neither"])
    assert found[0] == pytest.approx(expected[0], abs=1e-4)
