"""What a stage has read of its sources: said, and kept in ``run.json``."""

from dataclasses import asdict

from charter.data.bad_rows import BadRows
from charter.worker.context import Run
from charter.worker.supervised.corpus import Corpus


def note_sources(run: Run, stage: str, corpus: Corpus, bad: BadRows, *, items: str, counted: str) -> None:
    """Say of each source how many items there are and what was left out.

    ``items`` calls them by name, or is empty; ``counted`` is the name under which the rows that ``bad`` skipped count.
    """
    for source, one in corpus.items():
        run.artifacts.record.setdefault("left_out", {})[f"{stage}: {source}"] = asdict(one.left_out)
        words = f"{source}: {len(one.train)}{items and f' {items}'} to learn from, {len(one.held_out)} held out"
        run.reporter.report(0, 0, text="; ".join([words, *filter(None, [one.left_out.in_words()])]))
    run.artifacts.count(**{counted: bad.counts.total()})
