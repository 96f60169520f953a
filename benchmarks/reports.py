"""What a large report costs: `python -m benchmarks.reports`. Needs Chromium.

- the graph of 5,000 layers in six shapes: seconds of CPU to lay it out;
- a report of 3,000 layers in two precisions: its size, and in the browser when it is first painted, when it has loaded,
  and how long a filter and a row's details take;
- the graph of 3,000 layers, unfolded: milliseconds a frame while it is dragged (the median and the slowest of 60), with
  all in view and close by.

The goals: laid out in 2 s, painted in 2 s, loaded in 4 s, 50 ms a frame.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))

from browser import Opened, chromium
from test_browser import large, written
from test_report_graph import SHAPES, page_of, shaped

from precisionlab.report.folds import find_folds
from precisionlab.report.layout import lay_out

# Drags the graph, and gives back how many milliseconds each frame came after the one before.
PAN = """async () => {
  const canvas = document.querySelector("[data-graph] canvas"), box = canvas.getBoundingClientRect(), gaps = [];
  const fire = (kind, x, y) => canvas.dispatchEvent(new PointerEvent(kind, {pointerId: 1, clientX: x, clientY: y}));
  const x = box.x + box.width / 2, y = box.y + box.height / 2;
  canvas.setPointerCapture = () => {};
  fire("pointerdown", x, y);
  let last = await new Promise(requestAnimationFrame);
  for (let n = 1; n <= 60; n++) {
    fire("pointermove", x + 40 * Math.sin(n / 5), y - 6 * n);
    const now = await new Promise(requestAnimationFrame);
    gaps.push(now - last);
    last = now;
  }
  fire("pointerup", x, y);
  return gaps;
}"""

_PAINTED = """() => new Promise(done => new PerformanceObserver(list => done(list.getEntries()[0].startTime))
    .observe({type: "paint", buffered: true}))"""
_LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    """Measure, and print a line for each figure."""
    for shape in SHAPES:
        kinds, inputs = shaped(shape, 5000)
        start = time.process_time()
        lay_out(inputs, find_folds(kinds, inputs))
        print(f"{shape}: {len(kinds)} layers laid out in {time.process_time() - start:.2f} s of CPU")
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        path = Path(work) / "report.html"
        _page(browser, written(path, large(3000)))
        for shape in ("transformer", "near"):
            path.write_text(page_of(*shaped(shape, 3000)), encoding="utf-8")
            _frames(browser, path, shape)


def _page(browser: Any, path: Path) -> None:
    with Opened(browser, path) as opened:
        page = opened.page
        painted, loaded = page.evaluate(_PAINTED), page.evaluate(_LOADED)
        start = time.perf_counter()
        page.locator("#layers-1 input").fill("layer.2999/")
        page.locator("#layers-1 .open:visible").click()
        page.locator("tr.details").wait_for()
        found = time.perf_counter() - start
    size = path.stat().st_size / 1e6
    print(f"3,000 layers: {size:.1f} MB, painted {painted:.0f} ms, loaded {loaded:.0f} ms, found {1000 * found:.0f} ms")


def _frames(browser: Any, path: Path, shape: str) -> None:
    with Opened(browser, path) as opened:
        page = opened.page
        page.locator("[data-do=unfold]").click()
        page.locator("[data-do=fit]").click()
        far = sorted(page.evaluate(PAN))
        page.locator("[data-of=list] button").nth(5).click()
        near = sorted(page.evaluate(PAN))
    for where, gaps in (("all in view", far), ("close by", near)):
        print(f"{shape}, {where}: {gaps[len(gaps) // 2]:.0f} ms a frame, the slowest {gaps[-1]:.0f} ms")


if __name__ == "__main__":
    main()
