"""The labels of a study from its spec to the store: pairs, then each labeller, then what all of them have labelled."""

from collections.abc import Sequence

from charter.evaluation.compare.spec import EvaluateSpec
from charter.evaluation.compare.spec import fill_defaults as fill_judges
from charter.listed import listed
from charter.storage.comparisons import LABELLED
from charter.study.folder import StudyFolder
from charter.study.label_figures import labels_in_figures
from charter.study.label_log import Labels, add_labels, imported_labels, people_labels, read_labels
from charter.study.labels import StudyLabels, read_labelled, run_id_of, write_labelled
from charter.study.pairs import Chosen, choose_pairs, evaluated_prompts, read_pairs, write_pairs
from charter.study.spec import IMPORTED, PEOPLE, CheckedStudy, labellers
from charter.v1 import types_pb2
from charter.worker.errors import RunError
from charter.worker.evaluation.evaluate import Report, Servers
from charter.worker.study.asking import Asking, ask_judge, ask_scorer
from charter.worker.study.sampling import sampled_pairs
from charter.worker.study.storing import store_labels


class WaitingForPeopleError(RunError):
    """Pairs wait for people; the message says where they label them."""


def label_pairs(
    study: CheckedStudy, folder: StudyFolder, servers: Servers, stores: Sequence[str], show: Report
) -> StudyLabels | None:
    """Have every labeller that an arm names label the same pairs, and give the labels to the preference services.

    What is stored is not asked again. Nothing is done, and None given, where no arm learns from labels.

    Args:
        study: whose pairs.
        folder: of it, where no other command works.
        servers: of the start, and of judges that do not run.
        stores: addresses of the preference services that runs will ask.
        show: is told of each label.

    Raises:
        WaitingForPeopleError: all others have labelled.
        RunError: too much failed, pairs or a judge are others than before, no labels are left, or the store has others
            of a study of this name.
        DataError: files of pairs or prompts cannot be read.
        ServiceError: a service cannot be reached; ``StateFileError``, ``OSError``.
    """
    spec = study.spec
    names = labellers(spec)
    if not names:
        return None
    before = read_labelled(folder)
    chosen = _pairs(study, folder, before, servers, show)
    labels = read_labels(spec, folder)
    judges = {one.name: one for one in fill_judges(EvaluateSpec(judges=spec.judges)).judges}
    scorers = {one.name: one for one in spec.scorers}
    for name in names:
        if name == PEOPLE:
            continue
        asking = Asking(study, name, chosen.pairs, folder, labels, show)
        if name == IMPORTED:
            _keep(folder, labels, name, imported_labels(spec, asking.missing))
            show(f"labels of {name}", len(chosen.pairs), len(chosen.pairs), "")
        elif name in judges:
            ask_judge(study, judges[name], asking, chosen.pairs, folder, servers)
        else:
            ask_scorer(scorers[name], asking)
    if PEOPLE in names:
        _hear_people(study, chosen, folder, labels, show)
    found = labels_in_figures(spec, chosen, labels, before.ids if before else ())
    if len(found.ids) < 2:
        there = f"{len(found.ids)} of {len(chosen.pairs)} pairs"
        raise RunError(f"only {there} have a label of each of {listed(names)}: too few to fit a preference model to")
    # From here on the pairs stay: a command that is killed now has stored some.
    write_labelled(folder, found)
    for name in names:
        given = _of_everybody(chosen.pairs, labels[name], set(found.ids))
        for address in stores:
            store_labels(address, run_id_of(spec, name), given)
    return found


def _pairs(
    study: CheckedStudy, folder: StudyFolder, before: StudyLabels | None, servers: Servers, show: Report
) -> Chosen:
    spec, base = study.spec, study.base
    evaluated, known = evaluated_prompts(spec, base), read_pairs(folder)
    if not spec.pairs.sources:
        if before is not None and spec.pairs.sampled > len(known):
            raise RunError(_changed(folder))
        chosen = sampled_pairs(study, folder, evaluated, servers, show)
    else:
        chosen = choose_pairs(spec, base, evaluated)
        if before is None:
            write_pairs(folder, chosen.pairs)
        elif {one.id for one in known} != {one.id for one in chosen.pairs}:
            raise RunError(_changed(folder))
    if before is not None and not set(before.ids) <= {one.id for one in chosen.pairs}:
        raise RunError(_changed(folder))
    return chosen


def _changed(folder: StudyFolder) -> str:
    return (
        f"the labels of {folder.pairs} are given out already, and the spec takes other pairs now: bring `pairs`, the "
        "seed and the files back, or give the study another name"
    )


def _hear_people(study: CheckedStudy, chosen: Chosen, folder: StudyFolder, labels: Labels, show: Report) -> None:
    """Keep what people say of the pairs, once they have labelled all; votes that come later change nothing."""
    waiting = [pair for pair in chosen.pairs if pair.id not in labels[PEOPLE]]
    voted = people_labels(study.spec, waiting, folder.read_votes())
    done, there = len(chosen.pairs) - len(waiting) + len(voted), len(chosen.pairs)
    show(f"labels of {PEOPLE}", done, there, "")
    if done < there:
        fewer = "pairs.count" if study.spec.pairs.sources else "pairs.sampled"
        raise WaitingForPeopleError(
            f"people have labelled {done} of {there} pairs. `charter feedback --study {folder.path} --labeller NAME` "
            f"shows them the others; then give the same command again. A lower {fewer} takes fewer"
        )
    _keep(folder, labels, PEOPLE, voted)


def _keep(folder: StudyFolder, labels: Labels, name: str, found: Sequence[types_pb2.Comparison]) -> None:
    add_labels(folder, found)
    labels[name] |= {one.id: one for one in found}


def _of_everybody(
    pairs: Sequence[types_pb2.Comparison], labels: dict[str, types_pb2.Comparison], ids: set[str]
) -> list[types_pb2.Comparison]:
    """The labels of these pairs, as the store takes them: it gives them ids."""
    found = []
    for pair in pairs:
        label = labels.get(pair.id)
        if pair.id in ids and label is not None and label.outcome in LABELLED:
            sent = types_pb2.Comparison()
            sent.CopyFrom(label)
            sent.split, sent.dimension = pair.split, pair.dimension
            sent.ClearField("id")
            found.append(sent)
    return found
