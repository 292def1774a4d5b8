"""How labels of several sources are weighed."""

import pytest
from charter.spec.defaults import fill_defaults
from charter.spec.facts import label_sources
from charter.v1 import run_pb2
from charter.worker.errors import RunError, SpecError
from charter.worker.preference.fit import Example
from charter.worker.preference.mixing import all_alike, mix, shares


def feedback(**values: object) -> run_pb2.FeedbackSpec:
    spec = run_pb2.RunSpec(feedback=run_pb2.FeedbackSpec(**values))  # type: ignore[arg-type]
    return fill_defaults(spec).feedback


def examples(count: int, source: str, dimension: str) -> list[Example]:
    return [Example((1,), (2,), 1.0, f"{source} {dimension} {n}", source, dimension) for n in range(count)]


def test_nothing_said_is_rlaif_and_one_share_alone_is_all() -> None:
    assert shares(feedback(), "any") == {"AI": 1.0}
    assert shares(feedback(human=0.3), "any") == {"HUMAN": 1.0}
    assert shares(feedback(ai=3, human=1), "any") == {"AI": 0.75, "HUMAN": 0.25}
    assert fill_defaults(run_pb2.RunSpec(feedback=feedback(human=1))).feedback == feedback(human=1)


def test_shares_are_those_of_the_weights_whatever_the_counts() -> None:
    train = [*examples(90, "AI", "helpful"), *examples(10, "HUMAN", "helpful"), *examples(20, "IMPORTED", "helpful")]
    held_out = examples(5, "HUMAN", "helpful")
    weighted, measured, report = mix(train, held_out, feedback(ai=0.6, human=0.4))
    assert len(weighted) == 100
    assert measured == held_out
    total = {source: sum(one.weight for one in weighted if one.source == source) for source in ("AI", "HUMAN")}
    assert total == {"AI": pytest.approx(60), "HUMAN": pytest.approx(40)}
    assert [(one.source, one.train_pairs, one.held_out_pairs) for one in report] == [("AI", 90, 0), ("HUMAN", 10, 5)]
    assert [one.wanted_share for one in report] == pytest.approx([0.6, 0.4])
    assert [one.share for one in report] == pytest.approx([0.6, 0.4])


def test_people_for_helpfulness_and_the_judge_for_harmlessness() -> None:
    """The recipe of Constitutional AI (Bai et al. 2022): each source in its own dimension, each dimension its size."""
    spec = feedback(by_dimension={"helpful": run_pb2.FeedbackShares(human=1), "harmless": run_pb2.FeedbackShares(ai=1)})
    train = [*examples(10, "HUMAN", "helpful"), *examples(30, "AI", "harmless"), *examples(7, "AI", "helpful")]
    weighted, _, report = mix(train, [], spec)
    assert {(one.source, one.dimension) for one in weighted} == {("HUMAN", "helpful"), ("AI", "harmless")}
    assert {one.weight for one in weighted} == {1.0}
    assert [(one.dimension, one.source, one.share) for one in report] == [
        ("harmless", "AI", 1.0),
        ("helpful", "HUMAN", 1.0),
    ]
    assert label_sources(spec) == {"AI", "HUMAN"}


def test_where_a_source_has_nothing_the_others_share_its_part() -> None:
    train = [*examples(8, "AI", "harmless"), *examples(4, "AI", "helpful"), *examples(4, "HUMAN", "helpful")]
    weighted, _, report = mix(train, [], feedback(ai=0.5, human=0.5))
    assert {one.weight for one in weighted} == {1.0}
    assert [(one.dimension, one.source, one.wanted_share, one.share) for one in report] == [
        ("harmless", "AI", 0.5, 1.0),
        ("harmless", "HUMAN", 0.5, 0.0),
        ("helpful", "AI", 0.5, 0.5),
        ("helpful", "HUMAN", 0.5, 0.5),
    ]


def test_stored_labels_are_counted_as_they_are() -> None:
    train = [*examples(6, "AI", "harmless"), *examples(3, "AI", "helpful"), *examples(1, "HUMAN", "helpful")]
    report = all_alike(train, examples(2, "HUMAN", "helpful"))
    assert [(one.dimension, one.source, one.train_pairs, one.held_out_pairs, one.share) for one in report] == [
        ("harmless", "AI", 6, 0, 1.0),
        ("helpful", "AI", 3, 0, 0.75),
        ("helpful", "HUMAN", 1, 2, 0.25),
    ]
    assert [one.wanted_share for one in report] == [one.share for one in report]


def test_a_source_without_any_labels_is_an_error() -> None:
    with pytest.raises(RunError, match=r"feedback gives human a share, but .*charter feedback"):
        mix(examples(4, "AI", "helpful"), [], feedback(ai=0.5, human=0.5))
    spec = feedback(by_dimension={"harmless": run_pb2.FeedbackShares(human=1)})
    with pytest.raises(RunError, match=r"feedback.by_dimension.harmless gives human a share"):
        mix([*examples(4, "AI", "helpful"), *examples(4, "HUMAN", "helpful")], [], spec)


@pytest.mark.parametrize("values", [{"ai": -1.0, "human": 2.0}, {"ai": 0.0}, {"human": float("nan")}])
def test_senseless_shares_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="feedback must give at least one of ai"):
        shares(feedback(**values), "any")
    with pytest.raises(SpecError, match=r"feedback\.by_dimension\.d must give"):
        shares(feedback(by_dimension={"d": run_pb2.FeedbackShares(**values)}), "d")
