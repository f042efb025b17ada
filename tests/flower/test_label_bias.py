"""A server knows no task; how many labels there are, it takes from the clients."""

from __future__ import annotations

from functools import partial

import pytest

from hiso.core.identity import Identity
from hiso.flower.rounds import differences
from hiso.run.identity import settings_identity
from hiso.run.settings import parse_settings


@pytest.mark.parametrize("method", ["subspace_newton", "hiso"])
@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("site", [False, True])
def test_both_tune_label_biases_or_neither(method, server, site):
    settings = [parse_settings({"method": method, "label_bias": on}) for on in (server, site)]
    mine, theirs = (partial(settings_identity, s, s.make_method()) for s in settings)
    there = Identity.parse(theirs(3).text)
    assert there.method.labels == (3 if site else 0)
    assert bool(differences(mine, there)) == (server != site)
