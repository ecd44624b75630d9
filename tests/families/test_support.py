"""docs/support.md says what each method does on each family, and this is what happens."""

import pytest

from families import kit, support

WRITE = 'Run `make support`, or `make support ARGS="--pruner NAME"` for one method, and commit docs/support.md.'


@pytest.mark.long
@pytest.mark.parametrize("family", sorted(kit.families()))
def test_the_page_says_what_happens(family):
    """`make support` writes it anew."""
    page = support.PAGE.read_text()
    found = {method: support.outcome(family, method) for method in support.METHODS}
    assert support.row(family, found) in page, WRITE
    assert support.section(family, found) in page, WRITE


def test_the_page_names_no_other_family():
    """No line is left of a family or method that is gone."""
    page = support.PAGE.read_text()
    assert {line[3:] for line in page.splitlines() if line.startswith("## ")} == set(kit.families()), WRITE
    listed = page.split("| model | ")[1].splitlines()[0].rstrip(" |").split(" | ")
    new, gone = sorted(set(support.METHODS) - set(listed)), sorted(set(listed) - set(support.METHODS))
    assert not [*new, *gone], f"docs/support.md lacks {new} and has {gone} too many. {WRITE}"


def test_the_page_reads_back():
    """Who adds one method need not run the others: what the page says of them is taken as it stands."""
    page = support.PAGE.read_text()
    found, facts = support.written(page)
    assert {family: list(one) for family, one in found.items()} == dict.fromkeys(found, support.METHODS)
    for family, one in found.items():
        assert support.row(family, one) in page
        assert support.section(family, one, facts[family]) in page
    assert support.page(page, []) == page


def test_one_method_is_run_alone(monkeypatch):
    """Its column and its lines are anew; a method that the page lacks is run whether it is named or not."""
    page, asked = support.PAGE.read_text(), []
    monkeypatch.setattr(support, "outcome", lambda *of: asked.append(of) or support.Outcome("-", reason="because."))
    changed = support.page(page, ["dart"])
    assert asked == [(family, "dart") for family in sorted(kit.families())]
    assert changed.count("- dart: because.") == len(asked)
    lacks = page.replace("| dart |", "| old |")
    asked.clear()
    assert support.page(lacks, []) == changed
    assert {method for _, method in asked} == {"dart"}


def test_a_method_that_is_not_there(capsys):
    with pytest.raises(SystemExit):
        support.main(["--pruner", "longestt"])
    assert "invalid choice: 'longestt'" in capsys.readouterr().err
