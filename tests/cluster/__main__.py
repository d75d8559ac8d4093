"""`python -m tests.cluster start|stop|status [--folder DIR]`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.cluster.cluster import Cluster, ClusterError, default_folder
from tests.cluster.packages import CannotInstall


def main(arguments: list[str] | None = None) -> int:
    """Starts or stops the test cluster.

    Returns:
        0 done (or running, for `status`), 1 it is not.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description="a real Slurm on this machine")
    parser.add_argument("verb", choices=("start", "stop", "status"))
    parser.add_argument("--folder", type=Path, default=default_folder(), help="its state (default: %(default)s)")
    given = parser.parse_args(arguments)
    cluster, began = Cluster(given.folder), time.monotonic()
    try:
        if given.verb == "start":
            cluster.start()
            print(cluster.exports, end="")
        elif given.verb == "stop":
            cluster.stop()
        state = cluster.status()
    except (CannotInstall, ClusterError) as error:
        print(f"test cluster: {error}", file=sys.stderr)
        return 1
    print(f"test cluster: {state} after {time.monotonic() - began:.0f} s, {cluster.folder}", file=sys.stderr)
    return int(state != ("stopped" if given.verb == "stop" else "running"))


if __name__ == "__main__":
    sys.exit(main())
