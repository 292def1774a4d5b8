"""`charter judge`: asks the judge service about answers, and measures and calibrates it on labelled pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from charter.chat import ChatMessage
from charter.cli.bad_rows import OnBadRow, OnBadRowOption, bad_rows_of, tell
from charter.cli.calls import channel_to
from charter.cli.judging.asking import DetailsError, judge_pairs
from charter.cli.judging.tables import judgement_json, print_judgement, print_judgements, print_measurement
from charter.cli.output import JsonOption, console, emit_json, fail
from charter.data.errors import DataError
from charter.data.pairs.labelled import LabelledPair, read_labelled_pairs
from charter.data.sources import Source
from charter.evaluation.judge.judged import JudgedPair
from charter.judge.calibration_file import CalibrationFile, write_calibration
from charter.judge.methods import METHODS
from charter.rpc.channel import BATCH
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc

AddressOption = Annotated[
    str, typer.Option(help="The judge service, host:port. Default: that of `charter up`, port 50052.")
]
# The others are said by --reason.
_NAMES = tuple(name for name, method in METHODS.items() if not method.reasons)


def _known(method: str | None) -> str | None:
    if method is not None and method not in _NAMES:
        raise typer.BadParameter(f"{method!r} is not one of {', '.join(_NAMES)}.")
    return method


MethodOption = Annotated[
    str | None,
    typer.Option(
        callback=_known,
        metavar=f"[{'|'.join(_NAMES)}]",
        help="Default: the method that the judge was started with.",
    ),
]
PrincipleOption = Annotated[str, typer.Option(help="Judge by this principle. Default: one drawn at random.")]
EnsembleOption = Annotated[int, typer.Option(min=1, max=100, help="Average over this many principles.")]
DimensionOption = Annotated[str, typer.Option(help="Draw only principles of this dimension.")]
InstructionOption = Annotated[str, typer.Option(help="Judge by this instruction instead of the constitution.")]
ReasonOption = Annotated[bool, typer.Option("--reason", help="Let the judge reason first (method choice).")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the draw of principles.")]
PromptOption = Annotated[str, typer.Option(help="The user's request.")]


def compare(
    prompt: PromptOption = "",
    a: Annotated[str, typer.Option("--a", help="First answer.")] = "",
    b: Annotated[str, typer.Option("--b", help="Second answer.")] = "",
    file: Annotated[
        str, typer.Option(help="File or hub data set of pairs instead: prompt or messages, answer_a, answer_b.")
    ] = "",
    method: MethodOption = None,
    principle: PrincipleOption = "",
    ensemble: EnsembleOption = 1,
    dimension: DimensionOption = "",
    instruction: InstructionOption = "",
    reason: ReasonOption = False,
    seed: SeedOption = 0,
    on_bad_row: OnBadRowOption = OnBadRow.STOP,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Say which of two answers is better, with the probability of each principle and order."""
    if bool(file) == bool(prompt):
        fail("give either --prompt, --a and --b, or --file")
    pairs = (
        [LabelledPair((ChatMessage("user", prompt),), a, b, 0.5, "")]
        if not file
        else _read(file, on_bad_row, labelled=False)
    )
    options = _options(method, principle, ensemble, dimension, instruction, reason, seed)
    judged = _judge(pairs, options, address)
    if as_json:
        emit_json([judgement_json(one.judgement) for one in judged])
    elif not file:
        print_judgement(judged[0].judgement)
    else:
        print_judgements(judged)
    if not file and not judged[0].usable:
        raise typer.Exit(1)


def score(
    prompt: PromptOption,
    answer: Annotated[str, typer.Option(help="The answer to rate.")],
    principle: PrincipleOption = "",
    dimension: DimensionOption = "",
    instruction: InstructionOption = "",
    seed: SeedOption = 0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Rate one answer from 1 to 10 by a principle.

    The score is the expected rating, mapped to -1 .. 1.
    """
    item = judge_pb2.AnswerItem(id="0", prompt=proto_messages([ChatMessage("user", prompt)]), answer=answer)
    options = _options(None, principle, 1, dimension, instruction, False, seed)
    request = judge_pb2.JudgeServiceScoreRequest(items=[item], options=options)
    with channel_to("judge", address) as channel:
        (found,) = judge_pb2_grpc.JudgeServiceStub(channel).Score(request, timeout=BATCH)
    if as_json:
        emit_json(
            {
                "rated": found.rated,
                "score": found.score if found.rated else None,
                "distribution": list(found.distribution),
                "principle_id": found.principle_id,
                "failure": found.failure,
                "without_logprobs": found.without_logprobs,
            }
        )
    elif found.rated:
        ratings = "  ".join(f"{index + 1}: {probability:.2f}" for index, probability in enumerate(found.distribution))
        console.print(f"score {found.score:+.3f} by {found.principle_id}   (probability of each rating  {ratings})")
    if not found.rated:
        fail(f"the answer could not be rated: {found.failure}")


def calibrate(
    files: Annotated[
        list[str],
        typer.Argument(
            help="Labelled pairs: files or hub data sets, in any layout of `charter preferences import`.",
            metavar="LABELLED.jsonl...",
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the calibration file here.")] = None,
    method: MethodOption = None,
    principle: PrincipleOption = "",
    ensemble: EnsembleOption = 1,
    dimension: DimensionOption = "",
    instruction: InstructionOption = "",
    reason: ReasonOption = False,
    seed: SeedOption = 0,
    on_bad_row: OnBadRowOption = OnBadRow.STOP,
    address: AddressOption = "",
    details: Annotated[
        Path | None,
        typer.Option(
            help="Add what the judge says about each pair to this JSONL, without the texts; a new try goes on from it."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page with plots and tables here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the judge on labelled pairs and fit its calibration.

    The calibration is fitted on the pairs of one half of the prompts, for all and for each dimension with enough of
    them; the figures are those of the other half. A pair's own dimension says by which principles it is judged, unless
    --principle or --dimension do. With --method mix, each method that the mix asks is measured alone, too.
    """
    # Here, not at the top: comparing and rating need no numpy.
    from charter.evaluation.judge.measurement import measurement

    if output is not None and instruction:
        fail("a calibration holds for a constitution, and --instruction judges by none: leave out --output or that")
    try:
        sources = [Source.parse(file).pinned() for file in files]
    except DataError as error:
        fail(error)
    pairs = [pair for source in sources for pair in _read(str(source), on_bad_row)]
    options = _options(method, principle, ensemble, dimension, instruction, reason, seed)
    judged = _judge(pairs, options, address, own_dimension=not dimension, details=details)
    try:
        found = measurement(judged)
    except ValueError as error:
        fail(error)
    names = [source.place if source.of_hub else source.name for source in sources]
    found = {"files": names, "options": _options_json(options)} | found
    if output is not None:
        _write_calibration(output, found)
    if html is not None:
        _write_page(html, found)
    if as_json:
        emit_json(found)
        return
    print_measurement(found)
    if html is not None:
        console.print(f"Page: {html}", markup=False, soft_wrap=True)
    if output is not None:
        console.print(f"Calibration file: {output}. Start the judge with --calibration {output} to apply it.")


def _read(source: str, on_bad_row: OnBadRow, *, labelled: bool = True) -> list[LabelledPair]:
    bad = bad_rows_of(source, on_bad_row)
    try:
        pairs = read_labelled_pairs(source, bad, labelled=labelled)
    except (DataError, OSError) as error:
        fail(error)
    tell(source, bad)
    return pairs


def _options(
    method: str | None, principle: str, ensemble: int, dimension: str, instruction: str, reason: bool, seed: int
) -> judge_pb2.JudgingOptions:
    return judge_pb2.JudgingOptions(
        method=METHODS[method].number if method else judge_pb2.JUDGING_METHOD_UNSPECIFIED,
        principle_id=principle,
        ensemble_size=ensemble,
        dimension=dimension,
        instruction=instruction,
        chain_of_thought=reason,
        seed=seed,
    )


def _judge(
    pairs: Sequence[LabelledPair],
    options: judge_pb2.JudgingOptions,
    address: str,
    *,
    own_dimension: bool = False,
    details: Path | None = None,
) -> list[JudgedPair]:
    try:
        return judge_pairs(pairs, options, address, own_dimension=own_dimension, details=details)
    except DetailsError as error:
        fail(error)
    except OSError as error:
        fail(f"cannot write {details}: {error.strerror}")


def _write_calibration(path: Path, found: dict[str, Any]) -> None:
    said = ("model", "constitution_digest", "calibration", "calibration_by_dimension", "fitted_prompts")
    kind = type(METHODS[found["method"]].default)
    calibration = CalibrationFile(
        model=found["model"],
        constitution_digest=found["constitution_digest"],
        methods={found["method"]: kind(**found["calibration"])},
        conditions={key: value for key, value in found.items() if key not in said},
        dimensions={
            name: {found["method"]: kind(**values)} for name, values in found["calibration_by_dimension"].items()
        },
        fitted_prompts=tuple(found["fitted_prompts"]),
        ensemble_size=1 if found["options"]["principle"] else found["options"]["ensemble_size"],
        principle=found["options"]["principle"],
        dimension="" if found["options"]["principle"] else found["options"]["dimension"],
    )
    try:
        write_calibration(path, calibration)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def _write_page(path: Path, found: dict[str, Any]) -> None:
    # Here, not at the top: every other command starts without matplotlib.
    from charter.evaluation.report.judge_page import render_judge_page

    try:
        path.write_text(render_judge_page(found), encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def _options_json(options: judge_pb2.JudgingOptions) -> dict[str, Any]:
    return {
        "principle": options.principle_id,
        "ensemble_size": options.ensemble_size,
        "dimension": options.dimension,
        "instruction": options.instruction,
        "chain_of_thought": options.chain_of_thought,
        "seed": options.seed,
    }
