"""Names as a sentence has them."""

import pytest
from charter.listed import listed


@pytest.mark.parametrize(
    ("names", "said"), [([], ""), (["a"], "a"), (("a", "b"), "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_names_are_listed(names: list[str], said: str) -> None:
    assert listed(names) == said
