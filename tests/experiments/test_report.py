"""The report of a comparison: its text, its files, and what it says is missing."""

import csv
import io
import json
import re
import sys
from xml.etree import ElementTree

import pytest
from made_up import comparison, outcome, share

from masktuning.config.errors import UsageError
from masktuning.data.load import LabelledTexts
from masktuning.experiments.comparison import accuracy_of_one_label
from masktuning.experiments.plan import Plan, Variant
from masktuning.experiments.report import write_report
from masktuning.experiments.report_formats import escaped
from masktuning.experiments.report_tables import signed
from masktuning.tasks import SetSpec

TEXT = """\
3 methods on demo: 6 final runs.

Best out of distribution: mask_tuning, with a mean accuracy of 90.00 ± 0.00, \
+45.00 [+25.00, +65.00] * against finetuning, at 2.00x the time and 1.50x the memory.
In distribution, on dev, its difference is +0.00 [+0.00, +0.00].

method                       dev           difference              mean OOD      difference\
                 time   memory
---------------------------  ------------  ----------------------  ------------  \
-------------------------  -----  ------
finetuning                   85.00 ± 7.07                          45.00 ± 0.00\
                             1.00x  1.00x
mask_tuning                  85.00 ± 7.07  +0.00 [+0.00, +0.00]    90.00 ± 0.00  \
+45.00 [+25.00, +65.00] *  2.00x  1.50x
poe:bias_model=overlap_100%  75.00 ± 7.07  -10.00 [-30.00, +0.00]  50.00 ± 0.00  \
+5.00 [+0.00, +15.00]      1.10x  1.00x

method                       hans (ood)    difference
---------------------------  ------------  -------------------------
finetuning                   50.00 ± 0.00
mask_tuning                  90.00 ± 0.00  +40.00 [+10.00, +70.00] *
poe:bias_model=overlap_100%  60.00 ± 0.00  +10.00 [+0.00, +30.00]

method                       paws (ood)    difference
---------------------------  ------------  -------------------------
finetuning                   40.00 ± 0.00
mask_tuning                  90.00 ± 0.00  +50.00 [+20.00, +80.00] *
poe:bias_model=overlap_100%  40.00 ± 0.00  +0.00 [+0.00, +0.00]

Accuracies are in per cent: mean ± standard deviation over seeds.
A difference is that to finetuning on the same seeds and examples, with its 95 % bootstrap \
interval over seeds and examples.
It is marked with * if the interval excludes 0; one interval in twenty does so by chance alone, \
and more do with few seeds.
The mean OOD is that over the 2 out-of-distribution sets, each counted once.
Time and memory are relative to the baseline's run with the same seed, as a median over seeds; \
its median run took 10.0 s and 100 MB.

Each grid point was trained with the search seeds 1001, 1002 and judged by its mean accuracy on \
the in-distribution set dev.
mask_tuning: alpha=0.3 was chosen among 2 points, with a mean of 85.00 there.
The chosen point of each method was then run anew with the seeds 1, 2, which the search had not \
used.
The methods without a search were run with their options as given and the seeds 1, 2.
All figures in the tables come from these runs alone.
The out-of-distribution sets were not looked at for any choice.

Written to {folder}: comparison.md, .tex, .csv, .json, .svg"""


def test_the_text_for_the_terminal(tmp_path):
    assert write_report(comparison(), tmp_path) == TEXT.format(folder=tmp_path)
    names = [f"comparison.{ending}" for ending in ("csv", "json", "md", "svg", "tex")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_it_says_which_variants_one_label_for_all_texts_would_reach(tmp_path):
    sentence = "which a classifier reaches that gives every text the most frequent label of this"
    text = write_report(comparison(constant={"dev": 0.5, "hans": 0.6, "paws": 0.9}), tmp_path)
    low = "finetuning, poe:bias_model=overlap_100%"
    assert f"On hans, the mean accuracy of {low} is not above 60.00, {sentence} set.\n" in text
    assert f"On paws, no mean accuracy is above 90.00, {sentence} set.\n" in text
    assert "On dev, no" not in text and "On dev, the mean" not in text
    assert sentence in (tmp_path / "comparison.md").read_text()
    told = json.loads((tmp_path / "comparison.json").read_text())["accuracy_of_one_label"]
    assert told == {"dev": 0.5, "hans": 0.6, "paws": 0.9}


def test_the_share_of_the_most_frequent_label_is_that_of_each_measured_set():
    def texts(name, role, labels):
        return LabelledTexts(name, role, [["a"] * len(labels)], labels)

    sets = [texts("train", "train", [1]), texts("dev", "dev", [0, 2, 2]), texts("paws", "ood", [1])]
    union = SetSpec("both", role="union", union_of=["dev", "paws"])
    wanted = {"dev": pytest.approx(2 / 3), "paws": 1.0, "both": 0.5}
    assert accuracy_of_one_label(sets, [union]) == wanted


def two_variants(outcomes, seeds=(1, 2), **changed):
    """A comparison of two variants without a search."""
    variants = (Variant("finetuning"), Variant("poe"))
    plan = Plan(variants, {one.name: ((),) for one in variants}, (), seeds)
    choices = {one.name: () for one in variants}
    return comparison(plan=plan, choices=choices, search={}, outcomes=outcomes, **changed)


def test_a_table_that_fits_is_not_divided(tmp_path):
    runs = {s: outcome({"dev": share(5), "hans": share(6)}) for s in (1, 2)}
    text = write_report(two_variants({"finetuning": runs, "poe": runs}), tmp_path)
    heads = [line for line in text.splitlines() if line.startswith("method ")]
    assert len(heads) == 1
    assert re.split("  +", heads[0])[1:] == [
        *("dev", "difference", "hans (ood)", "difference", "time", "memory")
    ]


def test_markdown_has_one_wide_table_and_the_further_scores(tmp_path):
    write_report(comparison(), tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert (
        "| `mask_tuning` | 85.00 ± 7.07 | +0.00 [+0.00, +0.00] | 90.00 ± 0.00 | "
        "+40.00 [+10.00, +70.00] * | 90.00 ± 0.00 | +50.00 [+20.00, +80.00] * | 90.00 ± 0.00 | "
        "+45.00 [+25.00, +65.00] * | 2.00x | 1.50x |\n"
    ) in text
    assert "On paws, in per cent:\n\n| method | f1 |\n| --- | --- |\n" in text
    assert "| `finetuning` | 41.50 ± 0.71 |" in text and "f1_low" not in text
    assert "(comparison.svg)" in text and "What is missing" not in text
    for line in TEXT.split("\n\n")[-2].splitlines():  # the choices
        assert f"{line}\n" in text


def test_markdown_cells_hold_no_bar(tmp_path):
    name = Variant("poe", (("filter", "a|b"),)).name
    runs = {1: outcome({"dev": share(5)})}
    plan = Plan((Variant.parse(name),), {name: ((),)}, (), (1,))
    odd = comparison(plan=plan, outcomes={name: runs}, choices={name: ()}, baseline=name)
    write_report(odd, tmp_path)
    assert r"| `poe:filter=a\|b` | 50.00 |" in (tmp_path / "comparison.md").read_text()


def test_latex_is_a_booktabs_table_with_escaped_names(tmp_path):
    write_report(comparison(), tmp_path)
    lines = (tmp_path / "comparison.tex").read_text().splitlines()
    code = [line for line in lines if not line.startswith("%")]
    assert code[:3] == [
        r"\begin{tabular}{lcccccc}",
        r"\toprule",
        r"method & dev & hans (ood) & paws (ood) & mean OOD & time & memory \\",
    ]
    assert code[3] == r"\midrule" and code[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert code[5].startswith(r"mask\_tuning & $85.00 \pm 7.07$ & $90.00 \pm 0.00$ &")
    assert r"{\footnotesize $+40.00\ [+10.00, +70.00]^{*}$}" in code[6]
    assert r"{\footnotesize $+5.00\ [+0.00, +15.00]$}" in code[8]
    assert code[7].startswith(r"poe:bias\_model=overlap\_100\% &")
    assert all(line.count(" & ") == 6 and line.endswith(r" \\") for line in code[4:9])
    assert any("mean ± standard deviation" in line for line in lines if line.startswith("%"))


def test_every_special_character_of_latex_is_escaped():
    assert escaped(r"&%$#_{}") == r"\&\%\$\#\_\{\}"
    assert escaped("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert escaped("a<b>c|d") == r"a\textless{}b\textgreater{}c\textbar{}d"


def test_csv_has_one_row_per_variant_set_and_score(tmp_path):
    write_report(comparison(), tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert [(r["set"], r["score"]) for r in rows if r["variant"] == "mask_tuning"] == [
        *(("dev", "accuracy"), ("hans", "accuracy"), ("paws", "accuracy"), ("paws", "f1")),
        ("mean_ood", "accuracy"),
    ]
    found = next(r for r in rows if (r["variant"], r["set"]) == ("mask_tuning", "hans"))
    figures = ("mean", "sd", "n_seeds", "difference", "low", "high", "n_common_seeds")
    assert [float(found[name]) for name in figures] == pytest.approx([0.9, 0, 2, 0.4, 0.1, 0.7, 2])
    assert found["role"] == "ood" and rows[0]["variant"] == "finetuning"
    assert rows[0]["difference"] == rows[0]["low"] == rows[0]["n_common_seeds"] == ""


def test_json_holds_everything(tmp_path):
    given = comparison(failures={"final poe seed=3": "out of memory"})
    write_report(given, tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert found["plan"]["grids"]["mask_tuning"] == [{"alpha": "0.1"}, {"alpha": "0.3"}]
    assert found["plan"]["variants"] == [one.name for one in given.plan.variants]
    assert (found["plan"]["search_seeds"], found["plan"]["final_seeds"]) == ([1001, 1002], [1, 2])
    assert found["search"]["mask_tuning"][1] == {"point": {"alpha": "0.3"}, "dev": [0.8, 0.9]}
    assert found["choices"]["mask_tuning"] == {"alpha": "0.3"}
    assert found["failures"] == given.failures and found["identity"] == given.identity
    for name, runs in given.outcomes.items():
        result = found["results"][name]
        for seed, run in runs.items():
            assert result["runs"][str(seed)] == {
                **{"seconds": run.seconds, "memory_mb": run.memory_mb},
                **{"machine": "one", "folder": "runs/one", "warnings": []},
            }
            for set_name, one in run.sets.items():
                scores = result["sets"][set_name]
                assert scores["accuracy"]["by_seed"][str(seed)] == one.accuracy
                for score in scores["more"]:
                    assert scores["more"][score]["by_seed"][str(seed)] == one.more[score]
    difference = found["results"]["mask_tuning"]["mean_ood"]["difference"]
    assert difference["seeds"] == [1, 2] and difference["examples_only"] is False


def test_the_drawing_is_valid_and_the_same_each_time(tmp_path):
    """A dollar sign in a name begins no formula, and a < no tag."""
    odd = Variant("poe", (("filter", "$a<b$"),))
    variants = (Variant("finetuning"), odd)
    runs = {s: outcome({"dev": share(5 + s), "hans": share(6)}) for s in (1, 2)}
    plan = Plan(variants, {one.name: ((),) for one in variants}, (), (1, 2))
    given = comparison(plan=plan, outcomes={one.name: runs for one in variants}, choices={})
    imported = "matplotlib.pyplot" in sys.modules  # by another test
    write_report(given, tmp_path / "a")
    write_report(given, tmp_path / "b")
    drawn = (tmp_path / "a" / "comparison.svg").read_bytes()
    assert drawn == (tmp_path / "b" / "comparison.svg").read_bytes()
    words = [one.text for one in ElementTree.fromstring(drawn).iter() if one.text]
    assert {"finetuning", odd.name, "in-distribution accuracy (%)"} <= set(words)
    assert ("matplotlib.pyplot" in sys.modules) == imported


def test_without_matplotlib_a_line_says_so_and_no_older_drawing_stays(tmp_path, monkeypatch):
    write_report(comparison(), tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = write_report(comparison(), tmp_path)
    assert text.splitlines()[-2:] == [
        f"Written to {tmp_path}: comparison.md, .tex, .csv, .json",
        "comparison.svg was not drawn, since matplotlib is not installed: "
        "pip install 'masktuning[plots]'",
    ]
    assert not (tmp_path / "comparison.svg").exists()
    assert "comparison.svg" not in (tmp_path / "comparison.md").read_text()


def test_an_incomplete_comparison_says_what_is_missing(tmp_path):
    whole = comparison()
    text = write_report(
        comparison(
            choices={"finetuning": (), "poe:bias_model=overlap_100%": ()},
            search={"mask_tuning": {(("alpha", "0.1"),): [0.7]}},
            outcomes={
                "finetuning": whole.outcomes["finetuning"],
                "poe:bias_model=overlap_100%": {2: whole.outcomes["finetuning"][2]},
            },
            failures={"search mask_tuning alpha=0.3 seed=1001": "CUDA out of memory"},
        ),
        tmp_path,
    )
    lines = text.splitlines()
    assert lines[0] == "3 methods on demo: 3 of 6 final runs."
    assert re.split("  +", lines[9]) == ["mask_tuning", "-", "-", "-", "-"]
    assert "mask_tuning: no point is chosen yet (1 of its 4 search runs succeeded)." in lines
    assert text.endswith(
        "\nmask_tuning has no result yet.\n"
        "poe:bias_model=overlap_100% lacks seed 1.\n"
        "Failed cells (1):\n"
        "    search mask_tuning alpha=0.3 seed=1001: CUDA out of memory\n\n"
        f"Written to {tmp_path}: comparison.md, .tex, .csv, .json, .svg"
    )
    assert (
        "Only one seed is common to the baseline and poe:bias_model=overlap_100%: that interval "
        "is over the examples alone and says nothing about other seeds."
    ) in lines
    assert "CUDA out of memory" in (tmp_path / "comparison.md").read_text()
    assert "mask\\_tuning & - & - & - & - & - & - \\\\" in (tmp_path / "comparison.tex").read_text()


def test_methods_with_other_seeds_are_ordered_by_their_differences(tmp_path):
    # Seed 2 is easier for both, and only poe lacks it: its mean accuracy is lower, its lead is not.
    def runs(*of_seeds):
        return {s: outcome({"dev": share(5), "hans": share(n)}) for s, n in enumerate(of_seeds, 1)}

    outcomes = {"finetuning": runs(4, 8), "mask_tuning": runs(4, 9), "poe": runs(5)}
    variants = tuple(map(Variant, outcomes))
    plan = Plan(variants, dict.fromkeys(outcomes, ((),)), (), (1, 2))
    choices = dict.fromkeys(outcomes, ())
    uneven = comparison(plan=plan, choices=choices, search={}, outcomes=outcomes)
    lines = write_report(uneven, tmp_path).splitlines()
    assert lines[2].startswith("Best out of distribution: poe, with a mean accuracy of 50.00, +10.")
    rows = [line.split()[0] for line in lines if re.match("[a-z_]+ .*x$", line)]
    assert rows == ["finetuning", "poe", "mask_tuning"]
    outcomes["mask_tuning"] = runs(5, 9)  # now as far ahead as poe, but with a higher mean
    even = comparison(plan=plan, choices=choices, search={}, outcomes=outcomes)
    assert "reached the same" not in write_report(even, tmp_path)
    told = "Not all have the same seeds, so the rows are ordered by these differences"
    assert any(line.startswith(told) for line in lines)
    alike = two_variants({"finetuning": runs(4, 8), "poe": runs(5, 5)})
    assert told not in write_report(alike, tmp_path)


def test_a_choice_from_a_part_of_the_search_says_so(tmp_path):
    points = comparison().plan.grids["mask_tuning"]
    part = comparison(search={"mask_tuning": {points[0]: [0.7], points[1]: [0.8, 0.9]}})
    assert (
        "mask_tuning: alpha=0.3 was chosen among 2 points, with a mean of 85.00 there (3 of its 4 "
        "search runs succeeded)."
    ) in write_report(part, tmp_path).splitlines()


def test_seeds_of_the_search_that_are_final_ones_too_are_named(tmp_path):
    plan = comparison().plan
    same = Plan(plan.variants, plan.grids, (2, 3), plan.final_seeds)
    text = write_report(comparison(plan=same), tmp_path)
    assert "run anew with the seeds 1, 2, although the search had used 2 too." in text


def test_options_with_one_value_are_given_and_not_searched(tmp_path):
    plan = comparison().plan
    grids = {**plan.grids, "mask_tuning": ((("alpha", "0.3"),),)}
    one = Plan(plan.variants, grids, plan.search_seeds, plan.final_seeds)
    lines = write_report(comparison(plan=one, search={}), tmp_path).splitlines()
    assert "mask_tuning: alpha=0.3 was given." in lines
    assert (
        "Nothing was searched: all were run with their options as given and the seeds 1, 2."
        in lines
    )
    assert not any("grid point" in line for line in lines)


def test_nothing_has_ended_yet(tmp_path):
    text = write_report(comparison(outcomes={}, choices={}, search={}), tmp_path)
    assert text.startswith("3 methods on demo: 0 of 6 final runs.\n\nmethod ")
    assert text.count("has no result yet.") == 3
    assert "comparison.svg was not drawn, since there are no out-of-distribution results." in text
    assert len((tmp_path / "comparison.csv").read_text().splitlines()) == 1


def test_without_out_of_distribution_sets_rows_are_ordered_by_dev(tmp_path):
    runs = {"finetuning": 5, "poe": 7, "rubi": 8}
    variants = tuple(map(Variant, runs))
    plan = Plan(variants, dict.fromkeys(runs, ((),)), (), (1,))
    outcomes = {name: {1: outcome({"dev": share(n)})} for name, n in runs.items()}
    given = comparison(plan=plan, outcomes=outcomes, choices=dict.fromkeys(runs, ()))
    text = write_report(given, tmp_path)
    assert "No out-of-distribution set was measured, so nothing here says how" in text
    assert "were not looked at" not in text
    rows = [line.split()[:2] for line in text.splitlines()[6:9]]
    assert rows == [["finetuning", "50.00"], ["rubi", "80.00"], ["poe", "70.00"]]
    assert "mean OOD" not in text and "Highest" not in text
    assert "no out-of-distribution results" in text


def test_the_baseline_may_be_best_or_missing_and_a_difference_may_be_chance(tmp_path):
    def text(outcomes):
        return write_report(two_variants(outcomes), tmp_path)

    low, high = ({1: outcome({"dev": share(5), "hans": share(n)})} for n in (5, 6))
    assert (
        "distribution: finetuning, with a mean accuracy of 60.00, which is the baseline."
        in text({"finetuning": high, "poe": low})
    )
    assert "The interval of this difference contains 0, so it may be chance." in text(
        {"finetuning": low, "poe": high}
    )
    alone = text({"poe": high})
    assert (
        "poe, with a mean accuracy of 60.00. No seed was run with the baseline, finetuning, too."
        in alone
    )
    assert "relative to the baseline" not in alone and "finetuning has no result yet." in alone


def test_equal_means_are_told(tmp_path):
    runs = {1: outcome({"dev": share(5), "hans": share(6)})}
    text = write_report(two_variants({"finetuning": runs, "poe": runs}), tmp_path)
    assert "of 60.00, which is the baseline.\npoe reached the same.\n" in text


def test_warnings_are_shown_once_with_the_runs_that_gave_them(tmp_path):
    def runs(*of_seeds):
        sets = {"dev": share(5), "hans": share(6)}
        return {s: outcome(sets, warnings=one) for s, one in enumerate(of_seeds, 1)}

    cut = "hans: 36 of 40 texts are longer than 128 tokens"
    plain = runs([cut, "after 30 steps: one"], [cut])
    other = runs([cut], [cut, "after 45 steps: one"])
    text = write_report(two_variants({"finetuning": plain, "poe": other}), tmp_path)
    told = [
        f"all runs: {cut}",
        "finetuning seed 1: after 30 steps: one",
        "poe seed 2: after 45 steps: one",
    ]
    assert "\n".join(["Messages of the runs:", *told, "", "method "]) in text
    markdown = (tmp_path / "comparison.md").read_text()
    assert "Messages of the runs:\n\n- all runs: hans" in markdown
    found = json.loads((tmp_path / "comparison.json").read_text())["results"]
    assert found["poe"]["runs"]["2"]["warnings"] == [cut, "after 45 steps: one"]


def test_markdown_says_what_all_runs_have_in_common(tmp_path):
    flags = ["--hub_token", "secret", "--train_file", "my train.csv", "--push_to_hub_token=s"]
    write_report(comparison(flags=flags), tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "Every run has the options `--train_file 'my train.csv'`." in text
    assert "The versions are torch 2.13.0." in text
    assert "Numbers of texts: dev 10, hans 10, paws 10." in text


def test_times_of_different_machines_are_to_be_read_with_care(tmp_path):
    runs = {
        name: {1: outcome({"dev": share(5)}, machine=machine)}
        for name, machine in (("finetuning", "oak"), ("poe", "elm"))
    }
    assert "The runs were made on 2 machines (elm, oak)" in write_report(
        two_variants(runs), tmp_path
    )


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made a folder"):
        write_report(comparison(), tmp_path / "file" / "report")


@pytest.mark.parametrize(
    ("share", "text"), [(0.0123, "+1.23"), (-0.5, "-50.00"), (-1e-9, "+0.00"), (0.0, "+0.00")]
)
def test_no_difference_is_shown_as_minus_zero(share, text):
    assert signed(share) == text
