from __future__ import annotations

import pytest

from analysis.report import write_report
from tests.analysis.invented_study import MadeStudy, build


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    """An invented study with a planted effect, hostile names and its report; to be read only."""
    made = build(tmp_path_factory.mktemp("invented"))
    write_report(made.study, made.layout, made.runs)
    return made
