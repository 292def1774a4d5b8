"""Everything that `charter compare` writes of its figures."""

from charter.study.figure import write_figure
from charter.study.folder import StudyFolder
from charter.study.page import write_page
from charter.study.results import StudyResults, compute, write_results
from charter.study.spec import StudySpec


def write_all(spec: StudySpec, folder: StudyFolder) -> StudyResults:
    """Compute the figures and write ``result.json``, ``report.html`` and both figures.

    Raises ``StateFileError``, ``RunFolderError``, ``OSError``.
    """
    results = compute(spec, folder)
    write_results(results, folder)
    write_page(results, folder)
    write_figure(results, folder)
    return results
