"""What a measurement ran on."""

import json

import torch

from btp.measure.hardware import _cpu_model, hardware, peak_memory_mib


def test_hardware():
    """A line that JSON can hold, without a GPU on a CPU."""
    found = hardware(torch.device("cpu"), torch.bfloat16)
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"device", "gpu", "cpu", "threads", "torch", "dtype"}
    assert (found["device"], found["gpu"], found["dtype"]) == ("cpu", None, "bfloat16")
    assert found["threads"] == torch.get_num_threads()
    assert found["torch"] == torch.__version__


def test_cpu_model(tmp_path):
    """Read where the system lists it, else as the platform calls it."""
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: Acme 9000: fast\nprocessor\t: 1\nmodel name\t: other\n")
    assert _cpu_model(listing) == "Acme 9000: fast"
    assert _cpu_model(tmp_path / "absent")


def test_no_memory_on_a_cpu():
    """Nothing is known there, so nothing is run and nothing is said."""
    ran = []
    assert peak_memory_mib(lambda: ran.append(1), torch.device("cpu")) is None
    assert ran == []


def test_memory_on_a_gpu(monkeypatch):
    """The mark is reset before the run and read after the device has caught up."""
    log = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("sync"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: log.append("read") or 3 * 2**20)
    assert peak_memory_mib(lambda: log.append("run"), torch.device("cuda")) == 3.0
    assert log == ["sync", "reset", "run", "sync", "read"]
