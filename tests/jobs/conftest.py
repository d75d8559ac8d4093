"""What tests of the doctor share: a cluster in good health."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import doctor, probes
from tests.jobs.health import Health, program


@pytest.fixture
def health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Health:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(probes, "_POLL_S", 0.01)
    monkeypatch.setattr(probes, "_ASK_S", 0.0)
    monkeypatch.setattr(probes, "_SHOWS_WITHIN_S", 0.0)
    monkeypatch.setattr(doctor, "_MODULES", "fluence")  # one test imports all of them; torch takes seconds
    found = Health(bin=str(tmp_path / "bin"))
    program(tmp_path, "scontrol", "echo JobId=1 Requeue=1 Restarts=0")
    program(tmp_path, "sbatch", "echo Job 9 to start at 1 >&2")
    program(tmp_path, "sdiag", 'echo "sdiag output at now ($(date +%s))"')
    return found
