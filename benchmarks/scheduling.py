"""How long a study of 2,000 runs takes to plan, to submit, and to look at.

    eval "$(make --silent cluster)" && python benchmarks/scheduling.py; make cluster-down

It needs a Slurm, and leaves no job behind. Partitions are closed meanwhile, so that nothing starts. Each figure is the
time of a whole command, the start of Python included; `status` is timed asking Slurm, and then from its kept answer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

STUDY = """
name: many
data:
  datasets:
    drawn: {{kind: synthetic, num_images: 64, seed: 1}}
  training: drawn
  rated: drawn
  image_size_px: 32
  min_group_size: 2
models:
  one: {{kind: vae, architecture: small, width: 0.25}}
  two: {{kind: vae, architecture: small, width: 0.5}}
grid:
  groups: [all]
  seeds: [{seeds}]
"""


_PLAN = """
import sys
from pathlib import Path
from fluence.layout import Layout
from fluence.studyfile import load_study
from jobs.plan import plan
from jobs.snapshot import take_snapshot
layout = Layout(Path(sys.argv[2]))
print(len(plan(take_snapshot(load_study(Path(sys.argv[1]), {}), layout).tasks, layout)), "tasks")
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--site", default="test-cluster")
    given = parser.parse_args()
    if shutil.which("scontrol") is None:
        sys.exit("there is no Slurm here; on a machine of your own: make cluster")
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "many.yaml"
        study.write_text(STUDY.format(seeds=", ".join(map(str, range(given.runs // 2)))), encoding="utf-8")
        output = ["--output", str(Path(folder) / "many")]
        submit = ["submit", str(study), "--site", given.site, *output]
        with _closed_partitions():
            try:
                _time("plan", [str(study), output[1]], program=["-c", _PLAN])
                _time("submit, dry run", [*submit, "--dry-run"])
                _time("submit", submit)
                _time("submit again", submit)
                _time("status, asking Slurm", ["status", str(study), *output], forget=Path(folder) / "many")
                _time("status, kept answer", ["status", str(study), *output])
                _time("status --json", ["status", str(study), *output, "--json"])
            finally:
                _time("cancel", ["cancel", str(study), *output])


@contextmanager
def _closed_partitions() -> Iterator[None]:
    """Jobs wait, and none starts."""
    listed = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True, check=True)
    names = listed.stdout.split()
    try:
        for name in names:
            subprocess.run(["scontrol", "update", f"PartitionName={name}", "State=DOWN"], check=True)
        yield
    finally:
        for name in names:
            subprocess.run(["scontrol", "update", f"PartitionName={name}", "State=UP"], check=True)


def _time(
    name: str, arguments: Sequence[str], forget: Path | None = None, program: Sequence[str] = ("-m", "jobs.cli")
) -> None:
    if forget is not None:
        from fluence.layout import Layout

        Layout(forget).slurm_answers.unlink(missing_ok=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *program, *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    last = (done.stdout or done.stderr).strip().splitlines()[-1][:80]
    print(f"{name:<24} {seconds:6.2f} s   {last}", flush=True)


if __name__ == "__main__":
    main()
