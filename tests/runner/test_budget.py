"""Budgets on schedules from yamls: placed, moved, missed by the nearest, composed. No model runs here."""

import json
from dataclasses import replace

import pytest
from jobs import composed

from btp.runner.arms import build_arms
from btp.schedules.budget import Budget
from btp.schedules.fit import OutOfReach
from btp.schedules.meet import Facts
from btp.schedules.plan import Sources
from btp.schedules.serialize import missed_lines, restored, what_happened

FACTS = Facts(layers=8, total=144, vision_layers=2)
CALIBRATED = [
    {"site": "llm.layer.1", "keep": "fit", "balance": 0.6},
    {"site": "llm.layer.4", "keep": "fit", "balance": 1.0},
]


def arms(*words, facts=FACTS):
    """The arms of a command line, and what is said about its budget."""
    found, lines = build_arms(composed(*words), facts, Sources(lambda: CALIBRATED, lambda pruner: pruner))
    return {arm.name: arm for arm in found}, lines


def stages(arm):
    return [(str(stage.site), stage.keep) for stage in arm.schedule]


METHODS = ["btp", "fastv", "pdrop", "dart", "divprune", "fastervlm", "visionzip", "tome", "aim", "sparsevlm"]
METHODS += ["transprune", "vflowopt", "fastervlm_btp", "random", "diversity"]


@pytest.mark.parametrize("share", [0.22, 0.4])
@pytest.mark.parametrize("pruner", METHODS)
def test_every_method_meets_the_budget(pruner, share):
    """At equal compute, on a model of eight layers: within half a token of one layer's whole."""
    found, _ = arms(f"pruner={pruner}", f"budget.share={share}")
    for name in (pruner, "random", "downsampled"):
        arm = found[name]
        assert arm.reached == pytest.approx(share * 144, abs=0.75)
        assert arm.reached == arm.schedule.tokens_avg(144, 8)
    assert found[pruner].describe()["budget"]["asked"] == share * 144
    assert found["downsampled"].asked == found[pruner].reached
    assert found["unpruned"].describe()["budget"] == {"asked": None, "reached": 144}
    assert found["no_image"].describe()["budget"] == {"asked": None, "reached": 0}


def test_stages_move_where_counts_are_not_enough():
    """PyramidDrop's first stage at a quarter of the depth cannot meet 22%, one layer earlier it can."""
    found, (line,) = arms("pruner=pdrop", "budget.share=0.22")
    assert [site for site, _ in stages(found["pdrop"])] == ["llm.layer.1", "llm.layer.3", "llm.layer.5"]
    assert found["pdrop"].describe()["moved"] == 1
    assert stages(found["random"]) == stages(found["pdrop"])
    assert "stages of pdrop moved 1 layer towards the input, from llm.layer.2, llm.layer.4" in line
    assert "\n" not in line
    found, lines = arms("pruner=pdrop", "budget.share=0.4")
    assert stages(found["pdrop"])[0][0] == "llm.layer.2"
    assert (found["pdrop"].moved, lines) == (0, [])


def test_no_farther_than_the_method_looks():
    """FastV needs a layer to look at, so it stops behind the first; the nearest is what it reaches there."""
    with pytest.raises(OutOfReach, match=r"first cut at layer 1 of 8 .* The nearest is 18\.88"):
        arms("pruner=fastv", "budget.share=0.1")
    found, (line,) = arms("pruner=fastv", "budget.share=0.1", "budget.nearest=true")
    assert stages(found["fastv"]) == [("llm.layer.1", 1)]
    assert found["fastv"].describe()["budget"] == {"asked": 14.4, "reached": 18.875, "missed": True}
    assert "14.40 visual tokens on average were asked; the nearest that fastv reaches is 18.88" in line
    assert found["downsampled"].reached == 19


def test_move_off_is_an_error_with_the_nearest():
    """Stages that may not move leave the budget out of reach."""
    with pytest.raises(OutOfReach, match=r"first cut at layer 2 of 8 .* The nearest is 36\.75"):
        arms("pruner=pdrop", "budget.share=0.22", "budget.move=false")
    found, _ = arms("pruner=pdrop", "budget.share=0.22", "budget.move=false", "budget.nearest=true")
    assert stages(found["pdrop"])[0] == ("llm.layer.2", 1)


STAGES = (
    "[{site: llm.layer.3/32, keep: fit, balance: 0.6}, {site: llm.layer.6/32, keep: fit*0.5, balance: 0.8}, "
    "{site: llm.layer.14/32, keep: fit*0.2, balance: 1}, {site: llm.layer.22/32, keep: 0}]"
)
BIG = Facts(layers=32, total=576, vision_layers=23)


def test_a_stage_that_keeps_nothing_moves_too():
    """The last stage withdraws all, and stays as far behind the others."""
    found, _ = arms("pruner=btp", f"pruner.schedule={STAGES}", "budget.share=0.08", facts=BIG)
    assert [site for site, _ in stages(found["btp"])] == ["llm.layer.2", "llm.layer.5", "llm.layer.13", "llm.layer.21"]
    assert stages(found["btp"])[-1][1] == 0


def test_calibrated_stages_do_not_move():
    """Their layers were chosen for the model, and only a yaml's are moved."""
    with pytest.raises(OutOfReach):
        arms("pruner=btp", "budget.share=0.1")
    found, _ = arms("pruner=btp", "budget.share=0.1", "budget.nearest=true")
    assert stages(found["btp"]) == [("llm.layer.1", 2), ("llm.layer.4", 1)]


def test_a_budget_above_all_is_the_most_there_is():
    """Moving could only take away more, so nothing moves."""
    found, _ = arms("pruner=pdrop", "budget.share=0.99", "budget.nearest=true")
    assert found["pdrop"].moved == 0
    assert [keep for _, keep in stages(found["pdrop"])] == [143, 72, 36]


def test_the_free_layer():
    """VTW's knob is its layer; whoever keeps nothing behind it is held against random selection before the model."""
    found, lines = arms("pruner=vtw", "budget.share=0.4")
    assert stages(found["vtw"]) == [("llm.layer.3", 0)]
    assert found["vtw"].describe()["budget"] == {"asked": 57.6, "reached": 54, "missed": True}
    assert stages(found["random"]) == [("llm.input", 54)]
    assert "vtw leaves nothing to choose" in found["random"].describe()["note"]
    assert lines == []
    found, _ = arms("pruner=vtw", "pruner.layer=5")
    assert stages(found["vtw"]) == [("llm.layer.5", 0)]
    assert found["vtw"].describe()["budget"] == {"asked": None, "reached": 90}
    found, _ = arms("pruner=withdraw", "pruner.layer=budget")
    assert stages(found["withdraw"]) == [("llm.layer.2", 0)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pruner=vtw", "budget.share=0.05"], r"with all 144 tokens .* The nearest is 18\.00, off by 10"),
        (["pruner=vtw", "pruner.layer=5", "budget.share=0.3"], r"share=0\.3 has no effect.*pruner\.layer=budget"),
        (["pruner=vtw", "pruner.layer=12"], r"site is llm\.layer\.12, but the llm tower has 8 layers"),
        (["pruner=vtw", "pruner.layer=deep"], r"'llm\.layer\.deep' is not a site"),
        (["pruner=fastv", "+pruner.layer=3"], r"pruner\.layer is 3, but pruner 'fastv' has 1 stages and layer is for"),
        (["pruner=fastv", "pruner.schedule.0.site=llm.layer.9"], r"site is llm\.layer\.9, but the llm tower has 8"),
        (["pruner=tome", "budget.share=null"], "no budget is set"),
        (["pruner=fastervlm_btp", "pruner.parts.fastervlm.schedule=null"], "both have schedule: null"),
        (["pruner=fastervlm_btp", "pruner.parts.btp.schedule=[]"], r"pruner\.parts\.btp has no stage"),
        (
            ["pruner=fastervlm_btp", "pruner.parts.btp.schedule=[{site: vision.output, keep: fit, balance: 0}]"],
            r"fastervlm and btp both work at vision\.output",
        ),
        (["+pruner@controls.both=fastervlm_btp"], r"controls\.both is a composition"),
        (
            ["pruner=fastervlm_btp", "+pruner.parts.vtw=${pruner.parts.btp}", "schedule=uniform"],
            "both have schedule: null",
        ),
        (["pruner=tome", "schedule=paper"], "has no published schedule"),
    ],
)
def test_errors_name_the_key(words, message):
    """A layer the model does not have, more kept than alive, a setting without effect."""
    with pytest.raises(ValueError, match=message):
        arms(*words)


def test_a_control_that_is_the_method_stands_once():
    """By name, or by method and settings; the same method with another setting is a control of its own."""
    assert list(arms("pruner=random", "pruner.method.seed=3")[0]).count("random") == 1
    twin = ("pruner=fastv", "+pruner@controls.twin=fastv")
    assert "twin" not in arms(*twin)[0]
    digested = Sources(lambda: CALIBRATED, lambda pruner: {**pruner, "method": {**pruner["method"], "query": "mean"}})
    assert "twin" not in [arm.name for arm in build_arms(composed(*twin), FACTS, digested)[0]]
    found = arms(*twin, "controls.twin.method.query=mean")[0]
    assert found["twin"].role == "control"
    assert stages(found["twin"]) == stages(found["fastv"])


def test_keeping_more_than_is_alive_is_refused():
    """A share against a number is only seen with the model's own count of tokens."""
    words = ["pruner=pdrop", "pruner.schedule.0.keep=0.5", "pruner.schedule.1.keep=100", "pruner.schedule.2.keep=0"]
    with pytest.raises(ValueError, match=r"schedule\.1\.keep is 100 at llm\.layer\.4, more than are alive"):
        arms(*words)


def test_a_composition_shares_one_budget():
    """The run's stages go to the part without its own; all knobs scale together, and each stage says whose it is."""
    found, _ = arms("pruner=fastervlm_btp", "budget.share=0.3")
    main = found["fastervlm_btp"]
    assert [(str(s.site), s.settings["by"]) for s in main.schedule] == [
        ("vision.output", "fastervlm"),
        ("llm.layer.1", "btp"),
        ("llm.layer.4", "btp"),
    ]
    first, second, third = (stage.keep for stage in main.schedule)
    share = max(first / 144, 0.5)
    assert second == pytest.approx(first * share, abs=2)
    assert third == pytest.approx(second * share, abs=2)
    assert main.schedule[1].settings["balance"] == 0.6
    assert all(not stage.settings for stage in found["random"].schedule)


def test_a_part_may_withdraw_everything():
    """A stage that keeps nothing belongs to nobody in the end; before, it moves with its part."""
    words = [
        "pruner=fastervlm_btp",
        f"pruner.parts.btp.schedule={STAGES}",
        "pruner.parts.fastervlm.schedule.0.keep=500",
    ]
    found, _ = arms(*words, "budget.share=0.08", facts=BIG)
    main = found["fastervlm_btp"]
    assert main.moved == 1
    assert stages(main)[0] == ("vision.output", 500)
    assert stages(main)[-1] == ("llm.layer.21", 0)
    assert main.schedule[-1].settings == {}


def test_stages_in_the_tower_count_tokens_of_a_picture():
    """In a prompt of two pictures they keep a share of each, so that the prompt meets the budget."""
    two = Facts(layers=8, total=288, vision_layers=2, pictures=2)
    found, _ = arms("pruner=tome", "budget.share=0.25", facts=two)
    assert found["tome"].reached == 72
    assert [stage.count(144) for stage in found["tome"].schedule] == [90, 45, 36]
    assert found["downsampled"].schedule[0].keep == 72


UNEQUAL = (144, 36, 300, 36, 144, 4)


def unequal(totals=UNEQUAL):
    return replace(FACTS, total=round(sum(totals) / len(totals)), totals=tuple(totals), unequal=True)


@pytest.mark.parametrize("budget", ["budget.share=0.25", "budget.tokens=33"])
@pytest.mark.parametrize("pruner", ["btp", "fastv", "pdrop", "divprune", "sparsevlm", "random"])
def test_unequal_samples_meet_the_budget_each(pruner, budget):
    """By their own totals, for controls too; the order of samples changes nothing."""
    found, _ = arms(f"pruner={pruner}", "stages=2", budget, "budget.nearest=true", facts=unequal())
    turned, _ = arms(f"pruner={pruner}", "stages=2", budget, "budget.nearest=true", facts=unequal(UNEQUAL[::-1]))
    for name in (pruner, "random", "downsampled"):
        assert found[name].schedule == turned[name].schedule
        assert found[name].describe() == turned[name].describe()
        assert found[name].identity("x") == turned[name].identity("x")
        for total in (36, 144, 300):
            asked = 0.25 * total if budget == "budget.share=0.25" else 33
            assert found[name].schedule.tokens_avg(total, 8) == pytest.approx(asked, abs=5.5 if total == 300 else 0.75)
    main = found[pruner]
    mean = sum(main.schedule.tokens_avg(total, 8) for total in UNEQUAL) / len(UNEQUAL)
    assert main.reached == pytest.approx(mean)
    assert main.asked == pytest.approx(0.25 * sum(UNEQUAL) / len(UNEQUAL) if budget == "budget.share=0.25" else 33)
    assert all(0 < stage["keep"] < 1 for stage in main.describe()["schedule"])


def test_more_samples_leave_the_others_as_they_are():
    """Counts are a function of a sample's own total, so that a larger limit finds the same answers."""
    few, _ = arms("stages=2", "budget.share=0.25", facts=unequal((36, 144)))
    many, _ = arms("stages=2", "budget.share=0.25", facts=unequal())
    assert few["btp"].identity("x") == many["btp"].identity("x")
    equal, _ = arms("stages=2", "budget.share=0.25")
    for one, other in zip(few["btp"].schedule, equal["btp"].schedule, strict=True):
        assert one.count(144) == other.keep


def test_a_budget_in_tokens_above_some_samples():
    """These keep all, which the screen says; above all of them it is refused."""
    found, (line,) = arms("stages=2", "budget.tokens=60", "pruner=fastv", facts=unequal())
    main = found["fastv"]
    assert [main.schedule.tokens_avg(total, 8) for total in (4, 36)] == [4, 36]
    assert [main.schedule.tokens_avg(total, 8) for total in (144, 300)] == pytest.approx([60, 60], abs=0.5)
    assert main.describe()["budget"] == {"asked": 60, "reached": pytest.approx(42.75, abs=0.2), "missed": True}
    assert "60.00 visual tokens on average were asked; fastv reaches 42." in line
    assert "some samples have fewer before any pruning" in line
    with pytest.raises(
        OutOfReach, match=r"4 to 300 tokens a sample the schedule would keep all .* Lower budget\.share"
    ):
        arms("stages=2", "budget.tokens=300", "pruner=fastv", facts=unequal())


def test_a_budget_below_what_stages_reach_is_refused_by_the_mean():
    """With the nearest, and which way to go."""
    words = ["pruner=pdrop", "budget.tokens=15", "budget.move=false"]
    with pytest.raises(OutOfReach, match=r"first cut at layer 2 of 8 and 4 to 300 .* Raise budget\.share"):
        arms(*words, facts=unequal())
    found, _ = arms(*words, "budget.nearest=true", facts=unequal())
    assert found["pdrop"].describe()["budget"]["missed"]
    moved, _ = arms("pruner=pdrop", "budget.tokens=33", facts=unequal())
    assert moved["pdrop"].moved == 2  # one whole layer of 300 tokens is already 37.5 on average


def test_a_budget_in_tokens_inside_the_tower_is_one_share_of_every_picture():
    """A picture does not know its prompt; the mean over the samples is met."""
    tiles = replace(unequal((144, 288, 720)), pictures=5)
    found, _ = arms("pruner=tome", "budget.tokens=96", facts=tiles)
    assert found["tome"].reached == pytest.approx(96, abs=0.5)
    assert [stage.count(144) for stage in found["tome"].schedule][-1] == 36
    assert found["downsampled"].reached == pytest.approx(96, abs=0.5)


@pytest.mark.parametrize("words", [["pruner=btp"], ["pruner=pdrop"], ["pruner=fastervlm_btp"], ["pruner=vtw"]])
def test_a_schedule_comes_back_from_run_json(words):
    """Whatever solves it: a share, tokens, the method's schedule."""
    found, _ = arms(*words, "budget.tokens=50", "budget.share=null", facts=unequal())
    for arm in found.values():
        entry = json.loads(json.dumps(arm.describe()))
        assert [restored(entry).tokens_avg(total, 8) for total in UNEQUAL] == [
            arm.schedule.tokens_avg(total, 8) for total in UNEQUAL
        ]
        assert restored(entry) == arm.schedule


def test_what_happened_is_held_against_what_was_asked():
    """Over all samples, of which those without a picture were asked nothing; beyond 2% it is said, with the reason."""
    totals = [40, 100, 0, 100]
    tokens = Budget(8, tokens=60)
    entry = what_happened(tokens, 60.0, 40.0, totals)
    assert entry == {"asked": 45, "reached": 40, "missed": True}
    (line,) = missed_lines("fastv", entry, totals, tokens)
    assert line.startswith("budget: 45.00 visual tokens on average were asked of fastv, 40.00 were reached; ")
    assert line.endswith("1 of 4 samples have fewer than 60 before any pruning")
    share = Budget(8, share=0.5)
    assert what_happened(share, 40.0, 30.5, totals) == {"asked": 30, "reached": 30.5}
    assert missed_lines("fastv", what_happened(share, 40.0, 30.7, totals), totals, share)[0].endswith(
        "30.70 were reached"
    )
    assert what_happened(None, None, 12.0, totals) == {"asked": None, "reached": 12}


def test_what_a_search_found_is_used():
    """Layer, settings and stages of a search take the place of the yaml's."""

    def run(pruner, *words):
        found = Sources(lambda: CALIBRATED, lambda config: {**config, **pruner})
        return build_arms(composed(*words), FACTS, found)[0][1]

    vtw = run({"layer": 3}, "pruner=vtw", "pruner.layer=search")
    assert (stages(vtw), vtw.asked, vtw.reached) == ([("llm.layer.3", 0)], None, 54)
    shares = [{"site": "llm.input", "keep": 0.5}, {"site": "llm.layer.3", "keep": "fit"}]
    method = {"_target_": "btp.pruners.diversity.Diversity"}
    flow = run({"schedule": shares, "method": method}, "pruner=vflowopt", "pruner.strategy=search", "budget.share=0.3")
    assert flow.method == method
    assert flow.schedule[0].keep == 0.5
    assert flow.reached == pytest.approx(0.3 * 144, abs=0.5)


def test_published_schedules_leave_the_budget_nothing():
    """They are as printed on the model they were made for, and at the same depth on another."""
    found, _ = arms("pruner=btp", "schedule=paper", "schedule.model=llava15", facts=BIG)
    assert [(str(stage.site), stage.count(576)) for stage in found["btp"].schedule] == [
        ("llm.layer.3", 288),
        ("llm.layer.6", 144),
        ("llm.layer.14", 48),
        ("llm.layer.22", 0),
    ]
    assert found["btp"].describe()["budget"] == {"asked": None, "reached": 129}
    found, _ = arms("pruner=sparsevlm", "schedule=paper", "schedule.model=llava15", "schedule.setting=64")
    assert [site for site, _ in stages(found["sparsevlm"])] == ["llm.layer.1", "llm.layer.2", "llm.layer.4"]
    with pytest.raises(ValueError, match="has no effect"):
        arms("pruner=btp", "schedule=paper", "schedule.model=llava15", "budget.share=0.3", facts=BIG)
