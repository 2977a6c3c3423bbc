"""What sweeps and studies refuse before any work."""

from pathlib import Path

import pytest

from tune.experiment import prepare
from tune.sweep import Sweep


def test_workers_have_to_share_the_lanes_equally(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--workers 3 does not divide the 8 lanes of the data of llip_tiny_k8"):
        prepare(Sweep(workers=3, output=str(tmp_path)), "sweeps", "sweep", asha=True)
    assert not any(tmp_path.iterdir())
