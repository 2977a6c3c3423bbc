"""What sweeps and studies refuse before any work."""

from pathlib import Path

import pytest

from tune.experiment import prepare
from tune.sweep import Sweep


def test_workers_cannot_be_more_than_the_lanes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--workers 9 cannot share the 8 lanes of llip_tiny_k8"):
        prepare(Sweep(workers=9, output=str(tmp_path)), "sweeps", "sweep", asha=True)
    assert not any(tmp_path.iterdir())
