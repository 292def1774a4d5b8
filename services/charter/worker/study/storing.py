"""Gives the labels of a study to a preference service, each once, however often the command is given."""

from collections.abc import Iterator, Sequence

from charter.hashing import stable_number
from charter.rpc.channel import BATCH, connect
from charter.rpc.errors import explained
from charter.rpc.stalled import unless_stalled
from charter.storage.comparisons import comparison_to_row, content_digest
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from charter.worker.errors import RunError

# In one request, which stays well below the 64 MiB that a message may hold.
_COMPARISONS, _BYTES = 200, 8 * 1024 * 1024


def store_labels(address: str, run_id: str, labels: Sequence[types_pb2.Comparison]) -> None:
    """Store those labels of a run id that are not stored.

    Raises ``RunError`` where others are stored under the run id, as by an earlier study of the same name: who learns
    from it would learn from those too. Raises ``ServiceError``; the same call stores what is left.
    """
    ours = {_digest(one): one for one in labels}
    with connect(address) as channel, explained("preference", address):
        stub = preference_pb2_grpc.PreferenceServiceStub(channel)
        request = preference_pb2.StreamComparisonsRequest(filter=preference_pb2.ComparisonFilter(run_id=run_id))
        pages = unless_stalled(stub.StreamComparisons(request), BATCH)
        stored = {_digest(one) for page in pages for one in page.comparisons}
        if others := len(stored - ours.keys()):
            raise RunError(
                f"the preference service at {address} holds {others} labels of `{run_id}` that are not of this study, "
                "but of an earlier one of its name: give this one another name"
            )
        for chunk in _chunks([one for digest, one in ours.items() if digest not in stored]):
            name = f"{run_id}-{stable_number(*map(_digest, chunk)):016x}"
            stub.AddComparisons(preference_pb2.AddComparisonsRequest(request_id=name, comparisons=chunk), timeout=BATCH)


def _digest(label: types_pb2.Comparison) -> str:
    """Of what it says, whatever id and time it has."""
    return content_digest(comparison_to_row(label))


def _chunks(labels: Sequence[types_pb2.Comparison]) -> Iterator[Sequence[types_pb2.Comparison]]:
    chunk: list[types_pb2.Comparison] = []
    size = 0
    for one in labels:
        if chunk and (len(chunk) == _COMPARISONS or size + one.ByteSize() > _BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += one.ByteSize()
    if chunk:
        yield chunk
