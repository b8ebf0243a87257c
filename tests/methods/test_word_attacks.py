"""BAE and CLARE with a victim, a masked LM and similarities that are set by hand."""

import sys
import types as python_types

import pytest
import torch
from families import SPECIAL, VOCAB, examples, tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from masktuning.config.errors import UsageError
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.perturbations.attack import chosen_rows
from masktuning.methods.perturbations.bae import BAE
from masktuning.methods.perturbations.clare import CLARE
from masktuning.methods.perturbations.part_of_speech import coarse, nltk_tagger
from masktuning.methods.perturbations.scoring import Scorer
from masktuning.methods.perturbations.static import COLUMN, Rows
from masktuning.methods.perturbations.words import SPECIAL as OUTSIDE
from masktuning.methods.perturbations.words import Vocabulary
from masktuning.training.perturbation_log import marked, parts

WORDS = "the film plot is good great bad dull truly very . run ##ner".split()
ID = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}


def word_tokenizer():
    backend = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ("bos", "cls", "eos", "sep", "pad", "unk", "mask")
    tokens = ("<s>", "<s>", "</s>", "</s>", "<pad>", "<unk>", "<mask>")
    special = {f"{n}_token": t for n, t in zip(names, tokens, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def ids_of(text):
    return [0, *(ID[word] for word in text.split()), 2]


def words_of(text):
    return " ".join([*SPECIAL, *WORDS][i] for i in text.ids()[1:-1])


class ByHand:
    """A scorer: p(label 1) is 0.5 + the weights of the text's words; the masked LM knows the
    candidates with their probabilities by what stands before the mask."""

    def __init__(self, weights, candidates, far=()):
        self.weights, self.known, self.far = weights, candidates, far
        self.asked = []

    def probabilities(self, texts):
        scores = [0.5 + sum(self.weights.get(w, 0) for w in words_of(t).split()) for t in texts]
        return torch.tensor([[1 - p, p] for p in scores])

    def predicted(self, texts):
        rows = torch.zeros(len(texts), len(ID))
        for row, text in zip(rows, texts, strict=True):
            shown = words_of(text)
            self.asked.append(shown)
            for word, p in self.known.get(shown, {}).items():
                row[ID[word]] = p
        return rows

    def similarity(self, before, after):
        return torch.tensor([0.5 if words_of(t) in self.far else 0.95 for t in after])


def attacker(kind, **options):
    options = {"pos_filter": "off", **options}
    made = kind(
        word_tokenizer(),
        len(ID),
        MaskTuningOptions(perturbation=kind.__name__.lower(), **options),
        kind.__name__.lower(),
    )
    made.begin(limit=40)
    return made


def attacked(kind, text, scorer, label=1, tagger=None, **options):
    made = attacker(kind, **options)
    made.tagger = tagger
    before = made.vocabulary.split(ids_of(text), None)
    return words_of(made.attack(before, label, scorer))


WEIGHTS = {"good": 0.2, "great": 0.15, "film": 0.1, "bad": -0.2, "dull": -0.1, "plot": -0.05}
TEXT = "the film is good ."


def test_bae_replaces_the_most_important_word_until_the_label_flips():
    """p = 0.8; without "good" 0.6, without "film" 0.7. "bad" gives 0.4 and "dull" 0.55; "the" is a
    stop word, "##ner" no whole word, "good" the word itself."""
    known = {
        "the film is <mask> .": {"dull": 0.3, "bad": 0.1, "the": 0.2, "##ner": 0.3, "good": 0.1},
    }
    scorer = ByHand({**WEIGHTS, "dull": -0.05}, known)
    assert attacked(BAE, TEXT, scorer, bae_actions="replace") == "the film is bad ."
    assert scorer.asked == ["the film is <mask> ."]  # "film" is not tried any more


def test_bae_goes_on_to_the_next_word_and_stops_at_the_cap():
    """ "great" lowers p to 0.75, "plot" to 0.6: no flip. "very" would flip, but is a stop word."""
    known = {
        "the film is <mask> .": {"great": 0.3},
        "the <mask> is great .": {"plot": 0.3, "very": 0.5},
        "the <mask> is good .": {"plot": 0.3},
    }
    both = attacked(BAE, TEXT, ByHand(WEIGHTS, known), bae_actions="replace")
    assert both == "the plot is great ."
    one = attacked(BAE, TEXT, ByHand(WEIGHTS, known), bae_actions="replace", max_edits=1)
    assert one == "the film is great ."
    worse = {**WEIGHTS, "great": 0.25}  # raises p, so it is not taken
    kept = attacked(BAE, TEXT, ByHand(worse, known), bae_actions="replace")
    assert kept == "the plot is good ."


def test_bae_inserts_on_either_side():
    known = {"the film is <mask> good .": {"truly": 0.2}, "the film is good <mask> .": {"bad": 0.2}}
    weights = {**WEIGHTS, "bad": -0.4}
    for actions in ("insert", "both"):
        assert attacked(BAE, TEXT, ByHand(weights, known), bae_actions=actions) == (
            "the film is good bad ."
        )
    longest = attacker(BAE, bae_actions="insert")
    longest.begin(limit=7)  # as long as the text is
    text = longest.vocabulary.split(ids_of(TEXT), None)
    assert longest.attack(text, 1, ByHand(weights, known)) == text


def test_bae_prefers_the_most_similar_of_those_that_flip():
    known = {"the film is <mask> .": {"bad": 0.3, "dull": 0.1}}
    weights = {**WEIGHTS, "dull": -0.15, "bad": -0.5}  # both flip, "bad" by far
    scorer = ByHand(weights, known)
    scorer.similarity = lambda before, after: torch.tensor(
        [0.99 if "dull" in words_of(t) else 0.9 for t in after]
    )
    assert attacked(BAE, TEXT, scorer, bae_actions="replace") == "the film is dull ."
    assert attacked(BAE, TEXT, scorer, bae_actions="replace", similarity=0.995) == TEXT


def test_bae_takes_an_edit_that_flips_though_it_does_not_lower_p():
    """With three labels another one may become the likeliest while p(y) rises from 0.4 to 0.41."""

    class ThreeLabels(ByHand):
        def probabilities(self, texts):
            flipped = ["dull" in words_of(text) for text in texts]
            return torch.tensor([[0.45, 0.41, 0.14] if f else [0.35, 0.4, 0.25] for f in flipped])

    scorer = ThreeLabels({}, {"the film is <mask> .": {"dull": 0.3}})
    assert attacked(BAE, TEXT, scorer, bae_actions="replace") == "the film is dull ."


def test_bae_keeps_the_part_of_speech():
    """ "run" flips, but is no adjective; a verb for a noun is allowed."""
    known = {"the film is <mask> .": {"run": 0.9}, "the <mask> is good .": {"run": 0.5}}
    tags = {"good": "adjective", "film": "noun", "run": "verb"}
    weights = {**WEIGHTS, "run": -0.4}

    def tagger(words):
        return [tags.get(word, "other") for word in words]

    found = attacked(BAE, TEXT, ByHand(weights, known), tagger=tagger, bae_actions="replace")
    assert found == "the run is good ."


def test_a_text_that_is_misclassified_stays():
    for kind in (BAE, CLARE):
        assert attacked(kind, TEXT, ByHand(WEIGHTS, {}), label=0) == TEXT


def test_clare_applies_the_best_edit_of_each_word_in_order():
    """p = 0.8. Best per word: "good": "great" 0.75 or "dull" inserted 0.7; "film": merged with
    "the" into "plot" 0.65. In order: plot (0.65), dull after good (0.55), then the cap of 2."""
    known = {
        "the film is <mask> .": {"great": 0.3},
        "the film is good <mask> .": {"dull": 0.3},
        "<mask> is good .": {"plot": 0.3},
        "the <mask> is good .": {"plot": 0.0004},  # below the floor of a replacement
    }
    scorer = ByHand(WEIGHTS, known)
    assert attacked(CLARE, TEXT, scorer, max_edits=2) == "plot is good dull ."
    assert attacked(CLARE, TEXT, scorer, max_edits=1) == "plot is good ."
    low = {**known, "<mask> is good .": {"plot": 0.004}}  # below the floor of merging
    assert attacked(CLARE, TEXT, ByHand(WEIGHTS, low), max_edits=1) == "the film is good dull ."
    far = ByHand(WEIGHTS, known, far={"plot is good ."})
    assert attacked(CLARE, TEXT, far, max_edits=1) == "the film is good dull ."


def test_clare_stops_when_the_label_flips():
    known = {"the film is <mask> .": {"bad": 0.3}, "the <mask> is good .": {"plot": 0.3}}
    assert attacked(CLARE, TEXT, ByHand(WEIGHTS, known)) == "the film is bad ."


def test_clare_edits_a_word_once():
    """p = 0.75. Merging "the film" gives 0.55, "film plot" 0.58, which would use "film" again."""
    known = {
        "<mask> plot good .": {"dull": 0.3},
        "the <mask> good .": {"bad": 0.3},
        "the film plot good <mask> .": {"plot": 0.3},
    }
    scorer = ByHand({**WEIGHTS, "bad": -0.12, "dull": -0.1}, known)
    assert attacked(CLARE, "the film plot good .", scorer) == "dull plot good plot ."
    apart = {name: known[name] for name in list(known)[1:]}
    scorer = ByHand({**WEIGHTS, "bad": -0.12}, apart)
    assert attacked(CLARE, "the film plot good .", scorer) == "the bad good plot ."


def test_clare_merges_only_into_nouns():
    tags = {"the": "determiner", "film": "noun", "is": "verb", "good": "adjective"}
    made = attacker(CLARE)
    made.tagger = lambda words: [tags.get(word, "other") for word in words]
    text = made.vocabulary.split(ids_of("the film is good film ."), None)
    merges = [a.places for a in made._actions(text) if a.kind == "merge"]
    assert merges == [(1, 2), (4, 5)]


def test_the_cost_is_an_upper_bound():
    bae, clare = attacker(BAE, bae_actions="both"), attacker(CLARE, max_edits=2)
    text = bae.vocabulary.split(ids_of(TEXT), None)  # content words: film, good
    assert bae.cost(text) == (3, 3 + 2 * 3 * 101)
    # replace film and good, insert after four words, merge before film and good
    assert clare.cost(text) == (1 + 8, 1 + 8 * 101 + 2)


def test_words_of_word_pieces_and_pairs():
    vocabulary = Vocabulary(word_tokenizer(), len(ID))
    ids = [0, ID["run"], ID["##ner"], ID["."], 2, ID["good"], 2]
    text = vocabulary.split(ids, [0, 0, 0, 0, 0, 1, 1])
    assert text.pieces == ((0,), (ID["run"], ID["##ner"]), (ID["."],), (2,), (ID["good"],), (2,))
    assert text.segments == (OUTSIDE, 0, 0, OUTSIDE, 1, OUTSIDE)
    assert vocabulary.word(text.pieces[1]) == "runner" and vocabulary.places(text) == [1, 4]
    edited = text.edited({1: (ID["run"], ID["good"], ID["bad"]), 2: ()})
    assert edited.ids() == [0, ID["run"], ID["good"], ID["bad"], 2, ID["good"], 2]
    assert edited.token_types() == [0, 0, 0, 0, 0, 1, 1]
    assert text.window(4).ids() == [0, ID["good"], 2]
    assert not vocabulary.whole[ID["##ner"]] and not vocabulary.whole[ID["."]]
    assert vocabulary.whole[ID["run"]] and not vocabulary.whole[0]


def test_words_of_byte_level_bpe():
    tokens = ["<s>", "</s>", "A", "Ġfil", "m", ".", "Ġso", "so"]
    stub = python_types.SimpleNamespace(
        all_special_ids=[0, 1],
        convert_ids_to_tokens=lambda ids: [tokens[i] for i in ids],
    )
    stub = type("Stub", (), {**vars(stub), "__len__": lambda self: len(tokens)})()
    stub.convert_ids_to_tokens = lambda ids: [tokens[i] for i in ids]
    vocabulary = Vocabulary(stub, 10)
    text = vocabulary.split([0, 2, 3, 4, 5, 6, 1], None)
    assert text.pieces == ((0,), (2,), (3, 4), (5,), (6,), (1,))
    assert vocabulary.places(text) == [1, 2, 4]
    assert vocabulary.whole.nonzero().flatten().tolist() == [3, 6]


def test_windows_have_15_words():
    vocabulary = Vocabulary(tiny_tokenizer(), VOCAB)
    text = vocabulary.split([0, *range(10, 40), 2], None)
    assert text.window(16).ids() == [0, *range(18, 33), 2]
    assert text.window(1).ids() == [0, *range(10, 18), 2]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "bart"])
def test_the_scorer_is_the_stock_models(family):
    """Texts of two lengths at once equal each text alone."""
    model = tiny_model(family).eval()
    vocabulary = Vocabulary(tiny_tokenizer(), VOCAB)
    rows = [[0, 9, 4, 11, 2], [0, 12, 13, 14, 4, 15, 16, 2]]
    texts = [vocabulary.split(row, None) for row in rows]
    with torch.no_grad():
        scorer = Scorer(model, model, tiny_tokenizer(), typed=False)
        logits = [model.classifier(input_ids=torch.tensor([row])).logits for row in rows]
        assert torch.allclose(scorer.probabilities(texts), torch.cat(logits).softmax(1), atol=1e-5)
        states = [model.encode(*(torch.tensor([row]),) * 2)[0] for row in rows]
        at = [s[row.index(4)] for s, row in zip(states, rows, strict=True)]
        predicted = model.mlm_head.logits(torch.stack(at)).softmax(1)
        assert torch.allclose(scorer.predicted(texts), predicted, atol=1e-5)
        a, b = (s.mean(0).double() for s in states)
        cosine = float(a @ b / (a.norm() * b.norm()))
        found = scorer.similarity([texts[0], texts[1]], [texts[1], texts[1]])
        assert found.tolist() == pytest.approx([cosine, 1.0], abs=1e-5)


def method_of(name, **options):
    made = MaskTuningOptions(
        0.0, perturbation=name, similarity=-1.0, **{"pos_filter": "off", **options}
    )
    return MaskTuning(tiny_model("bert"), tiny_tokenizer(), made)


@pytest.mark.parametrize("name", ["bae", "clare"])
def test_attacks_lower_the_probability_of_the_label(name, tmp_path, caplog):
    victim = tiny_model("bert", seed=3)
    victim.save_pretrained(tmp_path / "victim")
    rows = [{**row, "token_type_ids": [0] * len(row["input_ids"])} for row in examples(6, 1)]
    train = method_of(name, perturbed_examples=3).prepare(rows, tmp_path)
    assert "3 of 6 training texts are attacked" in caplog.text
    scorer = Scorer(victim.eval(), victim, tiny_tokenizer(), typed=False)
    vocabulary = Vocabulary(tiny_tokenizer(), VOCAB)
    changed = 0
    for i, row in enumerate(rows):
        (version,), label = train[i][COLUMN], row["labels"]
        assert version[0] == 0 and version[-1] == 2
        assert len(train[i]["perturbed_token_type_ids"][0]) == len(version)
        texts = [vocabulary.split(ids, None) for ids in (row["input_ids"], version)]
        with torch.no_grad():
            before, after = scorer.probabilities(texts)
        if version != row["input_ids"]:
            changed += 1
            assert i % 2 == 0 and before.argmax() == label and after[label] < before[label]
    assert changed > 0


def test_a_label_or_a_mask_that_does_not_allow_it_leaves_a_text_alone(tmp_path, monkeypatch):
    tiny_model("bert").save_pretrained(tmp_path / "victim")
    asked = []
    monkeypatch.setattr(BAE, "attack", lambda self, text, *rest: asked.append(text.ids()) or text)
    rows = Rows([[0, 9, 2], [0, 4, 2], [0, 8, 2]], None, [0, 1, -100], [0, 1, 2])
    method = method_of("bae")
    versions = method.strategy.generate(method.model, rows, tmp_path)
    assert asked == [[0, 9, 2]] and [one[0].input_ids for one in versions] == rows.input_ids
    assert not {"tagger", "vocabulary"} & vars(method.strategy).keys()  # it is pickled


def test_the_log_aligns_texts_of_different_lengths():
    tokenizer = word_tokenizer()
    before, after = [*ids_of(TEXT), 1, 1], ids_of("film is good dull plot .") + [1]
    assert marked(tokenizer, before, after) == "[the -> ] film is good [ -> dull plot] ."
    found = [part for part in parts(tokenizer, before, after) if part[1] != part[2]]
    assert found == [(1, [ID["the"]], []), (5, [], [ID["dull"], ID["plot"]])]
    swapped = [0, ID["the"], ID["plot"], *before[3:]]
    assert marked(tokenizer, before, swapped) == "the [film -> plot] is good ."


def test_rows_at_equal_distances():
    assert chosen_rows(10, 0) == chosen_rows(10, 10) == chosen_rows(10, 99) == [*range(10)]
    assert chosen_rows(10, 3) == [0, 3, 6]


def test_the_victim_is_trained_first(tmp_path):
    for name in ("bae", "clare"):
        (stage,) = MaskTuning.stages(MaskTuningOptions(perturbation=name, pos_filter="off"))
        assert (stage.name, stage.method, stage.starts_from) == ("victim", "finetuning", None)
    for name in ("mlm", "random", "ssmba"):
        assert MaskTuning.stages(MaskTuningOptions(perturbation=name)) == []
    with pytest.raises(UsageError, match="victim: no trained classifier") as caught:
        method_of("bae").prepare(examples(2, 1), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_tagger_is_told_before_the_victim_is_trained(monkeypatch):
    options = MaskTuningOptions(perturbation="bae")
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(UsageError, match=r"pip install 'masktuning\[nltk\]', or give --pos_filter"):
        MaskTuning.stages(options)

    def pos_tag(words):
        raise LookupError("Resource averaged_perceptron_tagger_eng not found.")

    monkeypatch.setitem(sys.modules, "nltk", python_types.SimpleNamespace(pos_tag=pos_tag))
    with pytest.raises(UsageError, match=r"nltk\.downloader averaged_perceptron_tagger_eng"):
        MaskTuning.stages(options)
    tagged = python_types.SimpleNamespace(pos_tag=lambda words: [(w, "NNS") for w in words])
    monkeypatch.setitem(sys.modules, "nltk", tagged)
    assert nltk_tagger()(["films"]) == ["noun"]
    assert [coarse(t) for t in ("VBZ", "MD", "JJR", "RB", "DT", "IN")] == [
        "verb",
        "verb",
        "adjective",
        "adverb",
        "determiner",
        "IN",
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_edits": 0}, "max_edits is 0: give 1 or more"),
        ({"perturbed_examples": -1}, "perturbed_examples is -1: give 0 or more"),
        ({"similarity": 1.5}, "similarity is 1.5: give a number from -1 to 1"),
        ({"pos_filter": "spacy"}, "pos_filter is spacy: give nltk or off"),
        ({"bae_actions": "merge"}, "bae_actions is merge: give replace, insert or both"),
    ],
)
def test_what_is_out_of_range_is_told(options, told):
    with pytest.raises(ValueError, match=told):
        MaskTuningOptions(**options).check()
