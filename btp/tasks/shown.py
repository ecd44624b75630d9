"""What a message shows of a text that may be as long as a picture, and which texts can be names."""

import re

LONGEST = 100  # characters of a name
NO_NAME = (
    f"but a name has letters, digits, _, - and . only, begins with no . or -, and has at most {LONGEST} characters"
)
MOST, PATH = 120, 200  # characters of a text, and of one that may be a path


def is_name(text: object) -> bool:
    """Whether folders and files can be called so, without leading elsewhere."""
    return isinstance(text, str) and len(text) <= LONGEST and re.fullmatch(r"\w[\w.-]*", text) is not None


def short(value: object, most: int = MOST) -> str:
    """A text on one line, cut in its middle where it is long."""
    text = " ".join(str(value).split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"
