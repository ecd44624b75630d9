"""docs/support.md says what each method does on each family, and this is what happens."""

import pytest

from families import kit, support


@pytest.mark.parametrize("family", sorted(kit.families()))
def test_the_page_says_what_happens(family):
    """`make support` writes it anew."""
    page = support.PAGE.read_text()
    found = {method: support.outcome(family, method) for method in support.METHODS}
    assert support.row(family, found) in page
    assert support.section(family, found) in page


def test_the_page_names_no_other_family():
    """No line is left of a family or method that is gone."""
    page = support.PAGE.read_text()
    assert {line[3:] for line in page.splitlines() if line.startswith("## ")} == set(kit.families())
    assert "| model | " + " | ".join(support.METHODS) + " |" in page
