"""Under which names arms find their labels, and what a spec says once it learns from them."""

from charter.spec import label_checks
from charter.spec.defaults import fill_defaults
from charter.study.labels import stored_of, with_stored
from charter.v1 import run_pb2, study_pb2

SPEC = study_pb2.StudySpec(name="ours")


def test_an_arm_learns_from_whom_it_names() -> None:
    assert stored_of(SPEC, study_pb2.StudyArm(name="plain")) == []
    (judge,) = stored_of(SPEC, study_pb2.StudyArm(name="rlaif", labels="judge"))
    assert judge == run_pb2.StoredComparisons(run_id="study-ours-judge")
    mixed = study_pb2.StudyArm(name="mixed", labels_by_dimension={"helpful": "people", "harmless": "judge"})
    assert stored_of(SPEC, mixed) == [
        run_pb2.StoredComparisons(run_id="study-ours-judge", dimension="harmless"),
        run_pb2.StoredComparisons(run_id="study-ours-people", dimension="helpful"),
    ]


def test_nothing_in_the_spec_speaks_against_the_labels() -> None:
    run = run_pb2.RunSpec(
        feedback=run_pb2.FeedbackSpec(human=1),
        comparisons=run_pb2.ComparisonSpec(pairs=9, refresh_every_steps=2, refresh_pairs=3, held_out_fraction=0.3),
        preference_model=run_pb2.PreferenceModelSpec(warm_start_epochs=1, epochs=5),
    )
    before = run_pb2.RunSpec()
    before.CopyFrom(run)
    assert with_stored(run, []) == run
    found = with_stored(run, [run_pb2.StoredComparisons(run_id="study-ours-judge")])
    assert run == before
    assert (found.comparisons.held_out_fraction, found.preference_model.epochs) == (0.3, 5)
    assert list(label_checks.fitted(fill_defaults(found))) == []
