"""Reads files of comparisons for an import: checks every row before the first is sent."""

import uuid
from collections.abc import Iterable, Iterator, Mapping

from charter.data.bad_rows import BadRows, said
from charter.data.errors import DataError
from charter.data.pairs.read import PairDefaults, comparisons
from charter.v1 import preference_pb2, types_pb2

# An import request stays well below the 64 MiB that a message may hold.
_REQUEST_COMPARISONS = 1000
_REQUEST_BYTES = 8 * 1024 * 1024


def check_sources(sources: Mapping[str, PairDefaults], bad: Mapping[str, BadRows]) -> dict[str, int]:
    """Read every source to its end, and count in each the comparisons whose two answers are the same.

    Raises ``DataError`` that names the bad rows of all sources, where they stop, and the sources without a comparison.
    """
    found: list[DataError] = []
    identical = dict.fromkeys(sources, 0)
    for source, defaults in sources.items():
        try:
            count = 0
            for _, comparison in comparisons(source, defaults, bad[source]):
                count += 1
                identical[source] += comparison.answer_a.text == comparison.answer_b.text
            if not count:
                left_out = said(bad[source].counts)
                raise DataError([f"{source} holds no comparisons{f'; left out: {left_out}' if left_out else ''}"])
        except DataError as error:
            found.append(error)
    if found:
        raise DataError.of(found)
    return identical


def read_source(source: str, defaults: PairDefaults) -> Iterator[types_pb2.Comparison]:
    """The comparisons of a source that was checked, without those that were left out then."""
    for _, comparison in comparisons(source, defaults, BadRows("skip")):
        yield comparison


def requests(found: Iterable[types_pb2.Comparison]) -> Iterator[preference_pb2.AddComparisonsRequest]:
    """Comparisons in requests of bounded size."""
    request, size = preference_pb2.AddComparisonsRequest(request_id=uuid.uuid4().hex), 0
    for comparison in found:
        full = len(request.comparisons) == _REQUEST_COMPARISONS or size + comparison.ByteSize() > _REQUEST_BYTES
        if request.comparisons and full:
            yield request
            request, size = preference_pb2.AddComparisonsRequest(request_id=uuid.uuid4().hex), 0
        request.comparisons.append(comparison)
        size += comparison.ByteSize()
    if request.comparisons:
        yield request
