"""Pages in a real browser, for tests: on which screens, and what none of them may do."""

import shutil
from contextlib import contextmanager

FLAGS = ("--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
         "--disable-sync --no-first-run")  # fmt: skip
SCREENS = {"laptop": (1280, 800), "phone": (390, 844)}


def find_browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def shown(browser, page, screen, again=False, **more):
    """The page, open; fails at the end where it complained or asked for anything outside itself.

    Args:
        screen: a name in SCREENS, or (width, height) in pixels.
        again: it may be loaded more than once.
        more: of the browser's context.
    """
    width, height = SCREENS.get(screen, screen)
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    context.set_default_timeout(120_000)
    tab = context.new_page()
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri())
    yield tab
    context.close()
    assert complaints == []
    asked = [url for url in requests if not url.startswith("data:")]
    assert (list(dict.fromkeys(asked)) if again else asked) == [page.as_uri()]


def visible(tab, selector):
    return tab.eval_on_selector_all(selector, "all => all.filter(e => e.offsetParent !== null).length")
