"""Pictures of pages for the README: `python -m docs.making.pictures outputs/RUN outputs/multirun/SWEEP`.

Needs Chromium and playwright (requirements-dev.txt), and writes docs/images/report.png and docs/images/comparison.png.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
WIDTH, MARGIN = 1240, 28
ALONE = "nav { display: none }"  # a section without what follows the reader
SHOWN = {"report": ("#summary", "#table", "#samples"), "comparison": ("section.plotted", "section.kept")}
TALL = {"#samples": 440, "section.kept": 760}  # pixels of a section, from its top


def take(tab: Page, page: Path, sections: tuple[str, ...], to: Path) -> None:
    """Put some sections of a page below each other in one picture.

    Args:
        page: an HTML file.
        sections: CSS selectors, the first match of each.
        to: the PNG.
    """
    tab.goto(page.resolve().as_uri())
    tab.add_style_tag(content=ALONE)
    parts = []
    for at, selector in enumerate(sections):
        part = to.with_suffix(f".{at}.png")
        tab.locator(selector).first.screenshot(path=part)
        with Image.open(part) as picture:
            parts.append(picture.convert("RGB").crop((0, 0, picture.width, TALL.get(selector, picture.height))))
        part.unlink()
    size = (max(p.width for p in parts) + 2 * MARGIN, sum(p.height for p in parts) + MARGIN)
    whole, top = Image.new("RGB", size, parts[0].getpixel((0, 0))), 0
    for part in parts:
        whole.paste(part, (MARGIN, top))
        top += part.height
    whole.save(to, optimize=True)
    print(f"{to}: {whole.width} x {whole.height}, {to.stat().st_size / 1024:.0f} KiB")


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(prog="python -m docs.making.pictures", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("sweep", type=Path, help="folder of a sweep")
    given = parser.parse_args()
    pages = {"report": given.run / "report.html", "comparison": given.sweep / "comparison.html"}
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        parser.error("neither chromium nor google-chrome is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        tab = opened.new_page(viewport={"width": WIDTH, "height": 900})
        for name, page in pages.items():
            take(tab, page, SHOWN[name], ROOT / "docs" / "images" / f"{name}.png")
        opened.close()


if __name__ == "__main__":
    main()
