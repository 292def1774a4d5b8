"""Whatever a row holds, it is read or is a bad row: no other error, and no label that is no probability."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from charter.data.bad_rows import BadRows
from charter.data.conversations import conversations
from charter.data.pairs.read import PairDefaults, comparisons, pairs
from charter.data.prompts import prompts
from charter.data.texts import texts
from charter.data.thumbs import thumbs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

COLUMNS = re.findall(
    r"\S+",
    """messages conversations prompt instruction input context history question system completion response answer output
    text chosen rejected probability_chosen score_chosen score_rejected completions responses ratings helpfulness
    answer_a answer_b response_0 response_1 label labels score_A score_B overall_preference better_response_id
    safer_response_id winner comparison conversation_a conversation_b data annotations fields preference.responses
    preference.responses.status preference outcome source split probability_a dimension group turns kto_tag""",
)
KEYS = re.findall(
    r"\S+",
    """role content from value text type tool_calls response rank rating annotations Rating selected choices result
    status user_id prompt answer1 answer2 was_cancelled from_name values""",
)
PLAIN = re.findall(r"\S+", "a b x user assistant human left tie text submitted 1 N/A TRAIN AI TIE [ [1]")
ODD = ["", " ", "\n\nHuman: q\n\nAssistant: a", "q\n\n<extra_id_1>Assistant\na", '[{"selected": "left"}]', "\ud800"]
WORDS = st.sampled_from(PLAIN + ODD)
NUMBERS = st.sampled_from([0, 1, 2, -1, 0.5, 0.7, 1e308, -1e308, 10**400])
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
TURN = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": LEAVES})
ROWS = st.dictionaries(st.sampled_from(COLUMNS), VALUES | st.lists(TURN, max_size=3), max_size=8)
READERS: dict[str, Callable[[Path, BadRows], Any]] = {
    "conversations": conversations,
    "texts": texts,
    "prompts": prompts,
    "thumbs": thumbs,
    "pairs": pairs,
    "comparisons": lambda path, bad: comparisons(path, PairDefaults("f"), bad, labelled=False),
}


@pytest.mark.parametrize("reader", list(READERS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=3))
def test_any_row_is_read_or_bad(tmp_path: Path, reader: str, rows: list[dict[str, Any]]) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = BadRows("skip")
    found = list(READERS[reader](path, bad))
    if reader == "pairs":
        assert all(0 <= pair.label <= 1 for pair in found)
    if reader not in ("pairs", "comparisons", "thumbs"):
        # One for each row, or a bad row.
        assert len(found) + bad.counts.total() == len(rows)
