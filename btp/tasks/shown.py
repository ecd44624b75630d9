"""What a message shows of a text that may be as long as a picture."""

MOST, PATH = 120, 200  # characters of a text, and of one that may be a path


def short(value: object, most: int = MOST) -> str:
    """A text on one line, cut in its middle where it is long."""
    text = " ".join(str(value).split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"
