"""The simulation on Flower and Ray, held against the one in process."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from hiso.run.api import simulate

from .federation import Deployment, write_toml

pytestmark = [
    pytest.mark.flower,
    pytest.mark.timeout(400),
    pytest.mark.skipif(find_spec("ray") is None, reason="needs hiso[flower-simulation]"),
]


def test_ray_gives_the_same_model(tmp_path, settings):
    site = Deployment(tmp_path / "s")
    config = site.folder / "home" / "config.toml"
    resources = "options.backend.client-resources"
    config.write_text(
        config.read_text()
        + f"options.num-supernodes = 3\n{resources}.num-cpus = 1\n{resources}.num-gpus = 0.0\n"
        + "options.backend.init-args.num-cpus = 2\n"
    )
    write_toml(site.folder / "settings.toml", settings)
    try:
        site.superlink("--simulation")
        site.serve("run")
        asked = {"dev_examples": 4, "test_examples": 4, "clip": 3.0, **settings}  # as serve has it
        expected = simulate(out=tmp_path / "simulated", **asked)
        summary = site.summary("run", 240)
    finally:
        site.close()
    assert summary["digest"] == expected["digest"]
    print(f"\n{summary['seconds_per_round']:.2f} s a round")
