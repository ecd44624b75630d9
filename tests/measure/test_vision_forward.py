"""Operations of vision models: the formula counts what the counter counts, and what papers published."""

from itertools import count

import backbones
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from btp.core.schedule import Schedule
from btp.core.trace import Call
from btp.engine.attach import attach
from btp.measure.flops import measured
from btp.measure.vision.forward import Forward, frozen, measure_forward
from btp.measure.vision.tower import tower_cost
from btp.models.backbone import Backbone
from btp.models.vim import VimConfig, VimForImageClassification
from btp.pruners.fewer_frames import FewerFrames

pytestmark = pytest.mark.long


def cost_of(host):
    tower = host.towers["vision"]
    return tower_cost(host.model, tower.layers, tower.fixed_count, tower.attention if tower.attends else None)


def schedule(*stages):
    return Schedule.from_config([{"site": site, "keep": keep} for site, keep in stages])


@pytest.mark.parametrize("family", backbones.ATTENDING)
@pytest.mark.parametrize("stages", [(), (("vision.layer.1", 3), ("vision.mlp.2", 2))], ids=["whole", "cut"])
def test_the_formula_counts_what_the_counter_counts(family, stages):
    host = backbones.shared(family)
    inputs = backbones.pictures(host)
    pruner = FewerFrames() if stages else None
    with torch.inference_mode(), frozen(host.model), attach(host, pruner, schedule(*stages)) as trace:
        counted = measured(lambda: host(**inputs))
    assert cost_of(host).flops(trace[0]) == counted
    assert all(weight.requires_grad for weight in host.model.parameters())


def videomae(width, layers, heads):
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    config = VideoMAEConfig(**size, intermediate_size=4 * width, use_mean_pooling=True)
    with torch.device("meta"):
        return Backbone(VideoMAEForVideoClassification(config))


@pytest.mark.parametrize(
    ("sizes", "published"),
    [
        ((384, 12, 6), {0: 57, 32: 42, 48: 35, 64: 29}),
        ((768, 12, 12), {0: 180, 32: 136, 48: 116, 64: 96}),
        ((1024, 24, 16), {0: 597, 32: 446, 48: 376, 64: 308}),
        ((1280, 32, 16), {0: 1192, 32: 890, 48: 748, 64: 611}),
    ],
    ids="SBLH",
)
def test_published_counts_of_video_transformers(sizes, published):
    """Table 2 of STA (Ding et al. 2023): 8r, 4r and 2r of 1568 tubes leave in front of layers 1, d/3 + 1, 2d/3 + 1."""
    cost, depth = cost_of(videomae(*sizes)), sizes[1]
    for r, gflops in published.items():
        leave = {1: 8 * r, depth // 3 + 1: 4 * r, 2 * depth // 3 + 1: 2 * r}
        alive = [1568 - sum(n for start, n in leave.items() if layer >= start) for layer in range(depth)]
        call = Call((1568,), (0,), visual=[(n,) for n in alive])
        assert cost.flops(call) / 2e9 == pytest.approx(gflops, abs=1, rel=2e-3)


@pytest.mark.parametrize(("width", "published"), [(192, 1.5), (384, 5.1)])
def test_published_counts_of_vim(width, published):
    """Papers leave open how they count a scan: within 6 percent of them."""
    with torch.device("meta"):
        host = Backbone(VimForImageClassification(VimConfig(hidden_size=width)))
    found = cost_of(host).flops(Call((196,), (1,), visual=[(196,)] * 24)) / 2e9
    assert found == pytest.approx(published, rel=0.06)
    without = sum(197 * cost.attention for cost in cost_of(host).layers) / 2e9
    assert found - without > 0.2  # the scan is in it


def test_a_measurement_has_both_sides_per_sample():
    host = backbones.shared("vit")
    inputs = backbones.pictures(host, 4)
    clock = count(0, 0.5)  # each reading of the clock is half a second later
    subject = Forward(host.model, lambda: host(**inputs), cost_of(host), torch.device("cpu"))

    def attached():
        return attach(host, FewerFrames(), schedule(("vision.layer.2", 3)))

    with torch.inference_mode():
        found = measure_forward(subject, attached, pruner=None, repeats=2, warmup=1, now=lambda: next(clock))
    cut, whole = found["candidate"], found["baseline"]
    assert cut["tokens_avg"] == (9 + 9 + 3 + 3) / 4
    assert whole["tokens_avg"] == 9
    assert whole["flops_model"] == whole["flops_model_measured"]
    assert cut["flops_model"] == cut["flops_model_measured"] < whole["flops_model"]
    assert whole["per_second"] == 4 / 0.5
    assert cut["forward_ratio"]["median"] == 1
