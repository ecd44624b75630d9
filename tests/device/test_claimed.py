"""On a device that is not there: no operation mixes devices, and the host waits where it must and nowhere else."""

import pytest

from experiments.launches.follow import follow, names, waits

COUNTS = "read at engine/decoder/prefill.py (_read)"  # how many tokens each row has, and where they lie on a grid
# Methods whose next operation depends on numbers that only the device has, each with what it reads and why.
READERS = {}
QUICK = ("btp", "dart", "fastv", "visionzip")


@pytest.mark.parametrize("name", names())
def test_a_whole_prefill_and_a_step(name):
    """Two rows, one padded: what the CPU keeps and says, one read in front of the layers, and no wait besides."""
    on_device, on_cpu = follow(name, rows=2), follow(name, rows=2, claimed=False)
    assert on_device.kept == on_cpu.kept
    assert (on_device.logits - on_cpu.logits).abs().max() < 1e-5
    print(name, dict(waits(on_device.prefill)), dict(waits(on_device.step)))
