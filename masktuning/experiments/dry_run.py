"""What a comparison would run, and how long that takes, from a few timed steps of each method."""

from __future__ import annotations

import contextlib
import io
import tempfile

from masktuning.evaluation.quiet import less_output
from masktuning.evaluation.tables import aligned
from masktuning.experiments.plan import Plan, Variant
from masktuning.experiments.request import ComparisonRequest, check, plan_of
from masktuning.experiments.words import in_words
from masktuning.training.dry_run import estimates
from masktuning.training.job import read_job


def dry_run(request: ComparisonRequest) -> str:
    """A table of the runs of each variant with the time that they take.

    Raises:
        UsageError: for a comparison that cannot be run.
    """
    check(request)
    plan = plan_of(request)
    rows = [("method", "grid points", "search runs", "final runs", "one run", "all runs")]
    whole = 0.0
    for variant in plan.variants:
        seconds = run_seconds(request, variant)
        points = plan.proposals.get(variant.name, len(plan.grids[variant.name]))
        final = len(plan.final_seeds)
        search = plan.count_of(variant.name) - final
        whole += seconds * (search + final)
        cells = (str(points), str(search), str(final))
        times = (in_words(seconds), in_words(seconds * (search + final)))
        rows.append((variant.name, *cells, *times))
    jobs = request.jobs
    return (
        f"{aligned(rows)}\n\n{plan.count()} runs, {in_words(whole)} one after the other"
        + (f", about {in_words(whole / jobs)} with --jobs {jobs} if each is as fast" * (jobs > 1))
        + f"\n{_stages(request, plan)}\nEstimated from four steps and a batch of every set of each "
        "method, with what it prepares and its stages; the start of a process comes on top, some "
        "ten seconds. Nothing was kept."
    )


def run_seconds(request: ComparisonRequest, variant: Variant) -> float:
    """What one run of a variant takes, without the imports."""
    words = [*request.words(variant), "--disable_tqdm", "true", "--report_to", "none"]
    job = read_job(words, request.embedded, warn=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        less_output(progress=False, warnings=False),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        job.training.set_evaluate("no")
        job.training.do_eval = True
        return sum(one.total for one in estimates(job, folder).values())


def _stages(request: ComparisonRequest, plan: Plan) -> str:
    """Which seeds the runs would have."""
    final = ", ".join(map(str, plan.final_seeds))
    if not any(map(plan.is_searched, plan.grids)):
        return f"Nothing is searched; the figures would be those of the seeds {final}."
    search = ", ".join(map(str, plan.search_seeds))
    return (
        f"Grid points would be searched with the seeds {search}, and the chosen ones run anew with "
        f"the seeds {final}, which the figures would come from."
    )
