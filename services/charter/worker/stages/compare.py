"""Compares the policies of the run's stages with each other, as ``charter evaluate`` compares models."""

from collections.abc import Iterator
from contextlib import contextmanager

from charter.data.errors import DataError
from charter.evaluation.compare.folder import EvaluationFolder
from charter.evaluation.compare.prompts import EvaluatedPrompt, choose_prompts
from charter.evaluation.compare.results import compute, write_results
from charter.evaluation.compare.spec import EvaluateSpec, fill_defaults
from charter.evaluation.report.evaluation_page import write_page
from charter.listed import listed
from charter.spec.comparison_checks import OWN
from charter.v1 import evaluation_pb2, run_pb2
from charter.worker.clients.served import policy_serves, serve_saved_policy
from charter.worker.context import FIRST_VERSION, Run, StartingWeights
from charter.worker.errors import RunError
from charter.worker.evaluation.answers import served_model
from charter.worker.evaluation.evaluate import evaluate
from charter.worker.evaluation.judgements import served_judge
from charter.worker.stages.answers import held_out_prompts
from charter.worker.training.starting import policy_model

# Items between two reports.
_EVERY = 16


class StageComparison:
    """Writes ``comparison/``, the folder of an evaluation; the aligned policy is served again when it is done."""

    phase = run_pb2.PHASE_COMPARING

    def wanted(self, spec: run_pb2.RunSpec) -> bool:
        """Whether the spec asks for it."""
        return spec.evaluation.HasField("compare")

    def done(self, run: Run) -> bool:
        """Whether the figures are there, which are written last."""
        return EvaluationFolder(run.artifacts.comparison).result.exists()

    def work(self, run: Run) -> None:
        """Raises ``RunError`` when too much failed, or something is not what answered before."""
        weights = stage_weights(run)
        named = run.spec.evaluation.compare.stages
        if missing := [stage for stage in named if stage not in weights]:
            run.reporter.report(0, 1, text=f"not compared, for the run has made none: {listed(missing)}")
        spec = comparison_spec(run, weights)
        if len(spec.models) < 2:
            run.reporter.report(1, 1, text="nothing to compare: only one model is left")
            return
        run.artifacts.comparison.mkdir(exist_ok=True)
        folder = EvaluationFolder(run.artifacts.comparison)
        prompts = _prompts(run, spec)

        def report(stage: str, done: int, total: int, text: str) -> None:
            run.reporter.raise_if_stopped()
            if done % _EVERY == 0 or done == total:
                run.reporter.report(done, total, text=": ".join(filter(None, (stage, text))))

        evaluate(spec, prompts, folder, _Servers(run, weights), report)
        aligned = weights["policy"]
        if not policy_serves(run, aligned.version):
            serve_saved_policy(run, *aligned)
        models = [one.name for one in spec.models]
        results = compute(spec, folder)
        write_page(results, spec, folder)
        write_results(results, folder)
        run.reporter.report(len(prompts), len(prompts), text=f"compared: {listed(models)}")


def check_compared(spec: run_pb2.RunSpec) -> None:
    """Look for the services that the comparison will ask, before anything is learned. Raises ``ServiceError``."""
    for model in spec.evaluation.compare.models:
        served_model(model.address)
    for judge in spec.evaluation.compare.judges:
        served_judge(judge.address)


def stage_weights(run: Run) -> dict[str, StartingWeights]:
    """What was made by each stage, by its name, and as which version it is served: the same in every attempt."""
    learned = run.artifacts.learned
    return {
        "start": StartingWeights(policy_model(run.spec), FIRST_VERSION),
        **{
            name: StartingWeights(str(run.artifacts.folder / name), FIRST_VERSION + place)
            for place, name in enumerate(learned, 1)
        },
        "policy": StartingWeights(str(run.artifacts.policy), run.artifacts.record["policy_version"]),
    }


def comparison_spec(run: Run, weights: dict[str, StartingWeights]) -> EvaluateSpec:
    """The comparison as a spec of ``charter evaluate``, from which its figures can be computed again."""
    spec, compare = run.spec, run.spec.evaluation.compare
    own = evaluation_pb2.EvaluationJudge(
        name=OWN,
        address=spec.services.judge,
        method=spec.judge.method,
        ensemble_size=spec.judge.ensemble_size,
    )
    return fill_defaults(
        EvaluateSpec(
            name=spec.name,
            seed=spec.seed,
            models=[
                *(
                    evaluation_pb2.EvaluatedModel(name=stage, model=weights[stage].model)
                    for stage in compare.stages or weights
                    if stage in weights
                ),
                *(evaluation_pb2.EvaluatedModel(name=one.name, address=one.address) for one in compare.models),
            ],
            prompts=[evaluated_prompts(one) for one in compare.prompts]
            or [evaluation_pb2.EvaluatedPrompts(source=source) for source in spec.prompts.held_out],
            sampling=spec.sampling,
            judges=[evaluation_pb2.EvaluationJudge(name=one.name, address=one.address) for one in compare.judges]
            or [own],
            bootstrap_samples=spec.evaluation.bootstrap_samples,
            failures=spec.failures,
        )
    )


def evaluated_prompts(one: run_pb2.ComparedPrompts) -> evaluation_pb2.EvaluatedPrompts:
    """A source of ``evaluation.compare`` as one of ``charter evaluate``."""
    kind = evaluation_pb2.PromptKind.Value(f"PROMPT_KIND_{one.kind.upper() or 'UNSPECIFIED'}")
    count = one.count if one.HasField("count") else None
    return evaluation_pb2.EvaluatedPrompts(source=one.source, dimension=one.dimension, count=count, kind=kind)


def _prompts(run: Run, spec: EvaluateSpec) -> list[EvaluatedPrompt]:
    """Raises ``RunError`` for files that cannot be read any more."""
    if run.spec.evaluation.compare.prompts:
        try:
            return choose_prompts(spec)
        except DataError as error:
            raise RunError(f"evaluation.compare.prompts: {error}") from error
    return [EvaluatedPrompt(one.key, one.messages, one.dimension) for one in held_out_prompts(run)]


class _Servers:
    """The run's policy service, given the weights of each stage in turn, and services that run already."""

    def __init__(self, run: Run, weights: dict[str, StartingWeights]) -> None:
        self._run, self._weights = run, weights

    @contextmanager
    def model(self, model: evaluation_pb2.EvaluatedModel) -> Iterator[str]:
        """A policy service of the model."""
        if model.address:
            yield model.address
            return
        # From its files even where the service has it: what RL sent may be adapters, of another digest.
        serve_saved_policy(self._run, *self._weights[model.name])
        # A replica that has them.
        yield self._run.services.policy.info()[0][0]

    @contextmanager
    def judge(self, judge: evaluation_pb2.EvaluationJudge) -> Iterator[str]:
        """A judge service."""
        if judge.name == OWN:
            # Waits for it, and wakes it where it sleeps.
            self._run.services.judge.info()
        yield judge.address
