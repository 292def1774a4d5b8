"""How large an evaluation's page is, and how long a browser takes to show and to search it: 5 models, 2,000 prompts.

python -m tests.benchmarks.evaluation_page --answers 10000
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from charter.evaluation.compare.results import compute
from charter.evaluation.report.evaluation_page import write_page

from tests.support.chromium import Page, chromium
from tests.support.evaluation_folder import MODELS, WORDS, write_evaluation

# A frequent word, two, a phrase, and a word that is nowhere.
_WORDS = (WORDS[0], f"ppo {WORDS[50]}", f'"{WORDS[1]} {WORDS[2]}"', "nowhere")
# When the first page of answers was drawn, in ms from the beginning of the load.
_WATCH = """new MutationObserver((_, watch) => {
  if (!document.querySelector('.entry')) return;
  watch.disconnect();
  requestAnimationFrame(() => { window.firstPage = performance.now(); });
}).observe(document, {childList: true, subtree: true})"""
# From the key to the page that is laid out, in ms.
_SEARCH = """((words) => {
  const input = document.querySelector('input[type=search]');
  input.value = words;
  const start = performance.now();
  input.dispatchEvent(new Event('input', {bubbles: true}));
  document.body.offsetHeight;
  return performance.now() - start;
})(%r)"""


def main() -> None:
    """Write the page, open it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=256, help="mean words of an answer")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = write_evaluation(Path(place) / "folder", prompts=chosen.answers // len(MODELS), tokens=chosen.tokens)
        # Figures of few prompts are as large in the page as those of many, and sooner there.
        few = write_evaluation(Path(place) / "few", prompts=60)
        spec = folder.read_spec()
        assert spec is not None
        results = compute(spec, few)
        start = time.perf_counter()
        write_page(results, spec, folder)
        written = time.perf_counter() - start
        stored = sum(file.stat().st_size for file in (folder.answers, folder.judgements, folder.prompts))
        with chromium(Path(place) / "profile") as browser:
            page = browser.new_page("about:blank")
            page.call("Page.enable")
            page.call("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)
            page.open(folder.report.as_uri())
            page.wait("window.firstPage")
            first = page.evaluate("window.firstPage")
            searches = {words: _searched(page, words) for words in _WORDS}
        size = folder.report.stat().st_size / 1e6
        print(f"{chosen.answers} answers: {size:.1f} MB, of {stored / 1e6:.1f} MB, in {written:.1f} s")  # noqa: T201
        print(f"first page of answers after {first:.0f} ms")  # noqa: T201
        for words, (milliseconds, status) in searches.items():
            print(f"search for {words}: {milliseconds:.0f} ms ({status})")  # noqa: T201


def _searched(page: Page, words: str) -> tuple[float, str]:
    return median(page.evaluate(_SEARCH % words) for _ in range(5)), page.text(".listing-status")


if __name__ == "__main__":
    main()
