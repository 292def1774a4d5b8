"""What a fit, its warm start and the fits after refreshes learn from, and what they never see."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from charter.chat import ChatMessage, Role
from charter.held_out import held_out_of, prompt_key
from charter.rpc.messages import proto_messages
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2, types_pb2
from charter.worker.errors import RunError
from charter.worker.preference.examples import Divided, Reader, divide_labels, read_labels, split_examples
from charter.worker.preference.fit import Example
from hypothesis import given, settings
from hypothesis import strategies as st

AI, HUMAN = types_pb2.LABEL_SOURCE_AI, types_pb2.LABEL_SOURCE_HUMAN
IMPORTED = types_pb2.LABEL_SOURCE_IMPORTED
TRAIN, HELD_OUT = types_pb2.SPLIT_TRAIN, types_pb2.SPLIT_HELD_OUT
PROMPTS = [
    ("What is tea?",),
    ("Be brief.", "Hi"),
    ("Hi", "Hello", "What is tea?"),
    *((f"Question {n}",) for n in range(4)),
]
# Ways to write the same text.
VARIANTS = ("{}", " {}\n", "\u00a0{}\u200b", "{}\r\n\u2028")


def messages(prompt: int, variant: int = 0) -> list[ChatMessage]:
    roles: tuple[Role, ...] = ("system", "user") if len(PROMPTS[prompt]) == 2 else ("user", "assistant", "user")
    texts = (VARIANTS[variant].format(text.replace(" ", "  " if variant else " ")) for text in PROMPTS[prompt])
    return [ChatMessage(role, text) for role, text in zip(roles, texts, strict=False)]


@st.composite
def stored(draw: st.DrawFn, sources: Sequence[types_pb2.LabelSource.ValueType]) -> tuple[int, types_pb2.Comparison]:
    """A comparison with the place of its prompt."""
    prompt = draw(st.integers(0, len(PROMPTS) - 1))
    one = types_pb2.Comparison(
        prompt=proto_messages(messages(prompt, draw(st.integers(0, len(VARIANTS) - 1)))),
        answer_a=types_pb2.Answer(text=f"a{draw(st.integers(0, 99))}", weight_version=draw(st.sampled_from([1, 7]))),
        answer_b=types_pb2.Answer(text="b"),
        source=draw(st.sampled_from(sources)),
        outcome=draw(st.sampled_from([types_pb2.OUTCOME_PREFERRED_A] * 4 + [types_pb2.OUTCOME_INVALID])),
        split=draw(st.sampled_from([TRAIN, TRAIN, HELD_OUT])),
        dimension=draw(st.sampled_from(["helpful", "harmless", ""])),
    )
    if one.outcome == types_pb2.OUTCOME_PREFERRED_A:
        one.probability_a = 0.9
    return prompt, one


def prompts_of(examples: Sequence[Example]) -> set[int]:
    keys = {prompt_key(messages(prompt)): prompt for prompt in range(len(PROMPTS))}
    return {keys[example.group] for example in examples}


@pytest.fixture(scope="module")
def reader(tiny_model: Path) -> Reader:
    return Reader.load(str(tiny_model))


@given(
    labels=st.lists(stored([AI, HUMAN, IMPORTED]), min_size=4, max_size=9),
    imported=st.none() | st.lists(stored([IMPORTED]), min_size=1, max_size=4),
    judged=st.sets(st.integers(0, len(PROMPTS) - 1)),
    evaluated=st.sets(st.integers(0, len(PROMPTS) - 1), max_size=2),
    by_dimension=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_no_prompt_that_is_held_out_anywhere_is_trained_on(
    reader: Reader,
    labels: list[tuple[int, types_pb2.Comparison]],
    imported: list[tuple[int, types_pb2.Comparison]] | None,
    judged: set[int],
    evaluated: set[int],
    by_dimension: bool,
) -> None:
    """Whatever sources say of a prompt and however they write it: in the fit, a refreshed one and the warm start."""
    feedback = run_pb2.FeedbackSpec(ai=1, human=1, imported=1)
    if by_dimension:
        feedback.by_dimension["helpful"].human = 1
    spec = fill_defaults(run_pb2.RunSpec(feedback=feedback))
    held_out_of_run = held_out_of({prompt_key(messages(one)) for one in judged}, 0.2)
    evaluated_keys = {prompt_key(messages(one)) for one in evaluated}
    fits: list[Divided] = []
    for newest in (1, 7):
        known = [one for _, one in labels if one.answer_a.weight_version <= newest]
        try:
            main, warm_start = divide_labels(
                read_labels(reader, known, evaluated_keys),
                None if imported is None else read_labels(reader, (one for _, one in imported), evaluated_keys),
                spec.feedback,
                held_out_of_run,
                0.2,
            )
        except RunError:
            # Too few labels, or of too few prompts: it says so, and no part is empty.
            continue
        fits = [main, *([warm_start] if warm_start is not None else [])]
        assert all(train and held_out for train, held_out in fits)
        trained = {prompt for train, _ in fits for prompt in prompts_of(train)}
        measured = {prompt for _, held_out in fits for prompt in prompts_of(held_out)}
        assert not trained & measured
        assert not (trained | measured) & evaluated
        said = [*((one, label) for one, label in labels if label in known), *(imported or [])]
        assert not trained & {prompt for prompt, label in said if label.split == HELD_OUT}
        assert not {prompt_key(messages(one)) for one in trained} & held_out_of_run


def label(prompt: str, split: types_pb2.Split.ValueType = TRAIN, **fields: object) -> types_pb2.Comparison:
    return types_pb2.Comparison(
        prompt=[types_pb2.Message(role=types_pb2.ROLE_USER, content=prompt)],
        answer_a=types_pb2.Answer(text="Yes, surely"),
        answer_b=types_pb2.Answer(text="No"),
        outcome=types_pb2.OUTCOME_PREFERRED_A,
        probability_a=1.0,
        split=split,
        **fields,  # type: ignore[arg-type]
    )


def test_answers_are_counted_without_their_prompt(reader: Reader) -> None:
    short, long = (read_labels(reader, [label(prompt)]).examples[0] for prompt in ("Q", "Q " * 40))
    assert (short.tokens_a, short.tokens_b) == (long.tokens_a, long.tokens_b)
    # Every character of the tiny model is a token; EOS is one more.
    assert short.tokens_a - short.tokens_b == len("Yes, surely") - len("No")
    assert short.tokens_b == len(reader.tokenizer.answer_ids("No")) + 1
    assert long.prompt_tokens > short.prompt_tokens


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (
            ["A"] * 16,
            r"only 16 of 16 comparisons .* of 1 prompts, too few .* Give prompts\.train more prompts",
        ),
        (["A", " A\n"], "are of 1 prompts"),
        ([], "only 0 of 0 comparisons can be used, .* of 0 prompts"),
    ],
)
def test_one_prompt_is_too_few_and_the_advice_is_of_use(reader: Reader, prompts: list[str], words: str) -> None:
    with pytest.raises(RunError, match=words) as caught:
        split_examples(reader, [label(one, HELD_OUT) for one in prompts])
    assert "{" not in str(caught.value)


def test_where_nothing_is_held_out_a_share_of_the_prompts_is(reader: Reader) -> None:
    """Few imported prompts may all be drawn into one split."""
    train, held_out, _ = split_examples(reader, [label(one) for one in ("A", "B", "C", "B ")])
    assert {one.group for one in train} | {one.group for one in held_out} == {
        prompt_key([ChatMessage("user", one)]) for one in "ABC"
    }
    assert len({one.group for one in held_out}) == 1
    assert held_out == split_examples(reader, [label(one) for one in ("B ", "C", "A", "B")])[1] or len(held_out) == 2


def test_what_was_held_out_on_purpose_is_not_fitted_to(reader: Reader) -> None:
    with pytest.raises(RunError, match=r"all 2 prompts with labels are held out.*smaller --held-out-fraction"):
        split_examples(reader, [label(one, HELD_OUT) for one in "AB"])


def test_held_out_labels_of_a_source_without_a_share_leave_others_to_hold_out(reader: Reader) -> None:
    """All held-out labels belong to a source that has no share in their dimension."""
    feedback = run_pb2.FeedbackSpec()
    feedback.by_dimension["helpful"].human = 1
    labels = [
        *(label(f"H{n}", source=HUMAN, dimension="helpful") for n in range(4)),
        *(label(f"A{n}", HELD_OUT, source=AI, dimension="helpful") for n in range(4)),
    ]
    spec = fill_defaults(run_pb2.RunSpec(feedback=feedback))
    (train, held_out), _ = divide_labels(read_labels(reader, labels), None, spec.feedback, set(), 0.2)
    assert {one.source for one in (*train, *held_out)} == {"HUMAN"}
    assert (len(train), len(held_out)) == (3, 1)


def test_a_warm_start_on_held_out_prompts_alone_is_refused(reader: Reader) -> None:
    main = read_labels(reader, [label("A", HELD_OUT, source=AI), label("B", source=AI)])
    imported = read_labels(reader, [label("A ", source=IMPORTED)])
    spec = fill_defaults(run_pb2.RunSpec())
    with pytest.raises(RunError, match=r"preference_model\.warm_start_epochs: all 1 imported labels"):
        divide_labels(main, imported, spec.feedback, set(), 0.2)
