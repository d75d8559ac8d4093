"""A real Slurm on this machine: two nodes with four pretended GPUs each, one with much memory, and accounting.

All its state is in one folder, its ports are on loopback, and `stop` leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import os
import shlex
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from string import Template

from tests.cluster import database, processes
from tests.cluster.packages import install, program
from tests.cluster.processes import MARK, Process

NODES = ("v100n1", "v100n2", "bigmem1")
ACCOUNT = "fluence"
DEV_QOS, DEV_MAX_SUBMIT = "dev", 10

_DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")
_PORTS = ("slurmctld", "slurmdbd", *NODES)
_TEMPLATES = Path(__file__).with_name("templates")
_FINAL_STATES = ("CANCELLED", "COMPLETED", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")
_LONGEST_SOCKET_PATH = 107
_START_S, _STOP_S, _ABSENT_S = 60.0, 20.0, 2.0


class ClusterError(Exception):
    """The cluster cannot start; says what is wrong, with the last lines of the log that knows."""


def default_folder() -> Path:
    """Where the cluster of this user lives: $FLUENCE_TEST_CLUSTER_FOLDER, or a folder under $TMPDIR."""
    given = os.environ.get("FLUENCE_TEST_CLUSTER_FOLDER")
    return Path(given or Path(tempfile.gettempdir()) / f"fluence-slurm-{getpass.getuser()}").absolute()


def stop_abandoned() -> None:
    """Ends the clusters of test sessions that were killed: their folders end in the id of a process that is gone."""
    for folder in default_folder().parent.glob(f"{default_folder().name}-*"):
        owner = folder.name.rpartition("-")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            Cluster(folder).stop()


class Cluster:
    """One test cluster.

    Attributes:
        folder: everything it writes; made by `start`, removed by `stop`.
        name: its ClusterName, different for each folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.name = f"fluence{hashlib.sha256(bytes(self.folder)).hexdigest()[:8]}"

    # ── Start and stop ───────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Starts the cluster and waits until its nodes are idle. One that already runs well is left alone.

        Raises:
            CannotInstall: Slurm is not here and cannot be installed.
            ClusterError: a daemon does not start.
        """
        install()
        with self._locked():
            if self._is_well():
                return
            self._clear()
            try:
                self._start_all()
            except BaseException:
                self._clear()
                self._remove_folder()
                raise

    def stop(self) -> None:
        """Ends every process of the cluster and removes its folder; does nothing where there is no cluster."""
        if self.folder.exists():
            with self._locked():
                self._clear()
                self._remove_folder()
        else:
            processes.end(self._processes, _STOP_S)

    def heal(self) -> None:
        """Brings nodes back that a test has stopped, or starts the whole cluster anew."""
        if self._is_well():
            return
        for node in set(NODES) - self._nodes_among(self._processes()):
            self.start_node(node)
        try:
            self._wait_for("slurmctld", self._is_well)
        except ClusterError:
            self.start()

    def status(self) -> str:
        """`running`, `stopped`, or what is missing."""
        running = self._processes()
        if not running:
            return "stopped"
        return "running" if self._is_well() else f"broken: only {', '.join(sorted(p.name for p in running))} run"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Makes the folder and keeps others from starting or stopping the same cluster meanwhile."""
        while True:
            self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._refuse_strangers()
            with (self.folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if _is_same_file(lock.fileno(), self.folder / "lock"):  # else it was removed while we waited
                    yield
                    return

    def _refuse_strangers(self) -> None:
        """Refuses a folder that is not ours to fill and to remove."""
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ClusterError(f"{self.folder} is not a folder of yours; choose another one with --folder")
        if strange := {entry.name for entry in self.folder.iterdir()} - {"lock", *_FOLDERS, *_FILES}:
            raise ClusterError(f"{self.folder} holds {min(strange)}, which no test cluster wrote; choose another one")
        if len(os.fsencode(self.folder / "munge" / "socket.lock")) > _LONGEST_SOCKET_PATH:
            raise ClusterError(f"the path {self.folder} is too long for a socket; choose a shorter one with --folder")

    def _clear(self) -> None:
        """Ends what runs and removes what is in the folder, but for the lock."""
        processes.end(self._processes, _STOP_S)
        for name in _FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in _FILES:
            (self.folder / name).unlink(missing_ok=True)

    def _remove_folder(self) -> None:
        (self.folder / "lock").unlink(missing_ok=True)
        self.folder.rmdir()

    def _start_all(self) -> None:
        self._write_folder()
        munge, data = self.folder / "munge", self.folder / "database"
        self._daemon(
            "munged",
            "--foreground",
            "--force",  # or it would not work below a folder that only its owner may enter
            *(f"--{key}={munge / name}" for key, name in _MUNGE_FILES.items()),
        )
        self._make_database()
        self._daemon("mariadbd", *database.options(data))
        self._wait_for("munged", (munge / "socket").exists)
        self._wait_for("mariadbd", (data / "socket").exists)
        self._daemon("slurmdbd", "-D")
        self._wait_for("slurmdbd", lambda: self._succeeds("sacctmgr", "--immediate", "add", "cluster", self.name))
        self._make_accounts()
        self._daemon("slurmctld", "-D", "-f", str(self.conf))
        for node in NODES:
            self.start_node(node)
        self._wait_for("slurmctld", lambda: set(self.node_states().values()) == {"idle"})

    # ── Nodes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def start_node(self, node: str) -> None:
        """Starts the slurmd of a node; it comes back to work by itself if the node was down."""
        self._daemon("slurmd", "-D", "-N", node, "-f", str(self.conf), log=node)

    def stop_node(self, node: str) -> None:
        """Takes a node's power away: its slurmd, its steps and their processes end at once, without a word.

        Slurm notices after SlurmdTimeout (20 s); `scontrol("update", f"NodeName={node}", "State=DOWN", "Reason=test")`
        tells it at once.
        """
        processes.end(lambda: processes.of_node(self._processes(), node))

    def node_states(self) -> dict[str, str]:
        """State of each node, such as `idle`; `idle*` does not answer."""
        done = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", check=False)
        return dict(line.split() for line in done.stdout.splitlines() if line.count(" ") == 1)

    # ── Commands ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def conf(self) -> Path:
        """Its slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to speak with this cluster."""
        return {"SLURM_CONF": str(self.conf)}

    @property
    def exports(self) -> str:
        """The same as lines for a shell; the folder keeps them in `env.sh`."""
        return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items())

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a program that speaks with this cluster.

        Raises:
            ClusterError: it failed, and `check` is true.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        done = subprocess.run(
            command,
            env=environment | self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise ClusterError(f"`{shlex.join(command)}` ended with {done.returncode}: {done.stderr.strip()}")
        return done

    def sbatch(self, *options: str) -> str:
        """Submits a job and returns its id."""
        return self.run("sbatch", "--parsable", *options).stdout.strip().partition(";")[0]

    def scontrol(self, *arguments: str) -> str:
        """Runs scontrol."""
        return self.run("scontrol", *arguments).stdout

    def cancel_all(self) -> None:
        """Cancels every job and waits until none is left on a node."""
        self.run("scancel", "--user", getpass.getuser())
        self._wait_for("slurmctld", lambda: not self.run("squeue", "--noheader").stdout)

    def job(self, job: str) -> dict[str, str]:
        """What scontrol knows of a job: JobState, Restarts, NodeList, …"""
        words = self.scontrol("show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_job(self, job: str, *states: str, timeout_s: float = 60) -> str:
        """Waits until a job is in one of these states, and returns it.

        Raises:
            ClusterError: it does not come; says where the job is instead.
        """
        deadline = time.monotonic() + timeout_s
        while (state := self.job(job)["JobState"]) not in states:
            if time.monotonic() > deadline or state in _FINAL_STATES:
                raise ClusterError(f"job {job} is {state}, and not {' or '.join(states)}")
            time.sleep(0.2)
        return state

    def end_in(self, job: str, seconds: int) -> None:
        """Moves a running job's end: limits are whole minutes, but its end is a second.

        Slurm looks for jobs past their end, or within --signal's time of it, every 30 s.
        """
        self.scontrol("update", f"JobId={job}", f"EndTime=now+{seconds}")

    def history(self, job: str) -> list[tuple[str, str]]:
        """(job id, state) of every run of a job or of its array elements, from `sacct -D`, oldest first."""
        fields = "--format=JobID,State", "--parsable2", "--noheader", "--allocations", "--duplicates"
        lines = self.run("sacct", "-j", job, *fields).stdout.splitlines()
        return [(number, state.partition(" ")[0]) for number, state in (line.split("|") for line in lines)]

    # ── Inside ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _processes(self) -> list[Process]:
        return processes.of_cluster(self.folder, self.name)

    @staticmethod
    def _nodes_among(running: list[Process]) -> set[str]:
        """Nodes whose slurmd runs; one may show twice while it forks."""
        return {node for node in NODES for p in running if p.name == "slurmd" and node in p.command}

    def _is_well(self) -> bool:
        running = self._processes()
        complete = {p.name for p in running} >= set(_DAEMONS) and self._nodes_among(running) == set(NODES)
        states = self.node_states() if complete else {}
        return len(states) == len(NODES) and not any(s.startswith("down") or s.endswith("*") for s in states.values())

    def _write_folder(self) -> None:
        for name in _FOLDERS:
            (self.folder / name).mkdir(mode=0o755)
        (self.folder / "database").chmod(0o700)
        key = self.folder / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        for number in range(4):
            (self.folder / "dev" / f"gpu{number}").symlink_to("/dev/null")
        values = {"folder": self.folder, "cluster_name": self.name, "user": getpass.getuser(), "host": _host()}
        ports = {f"{name}_port": port for name, port in zip(_PORTS, _free_ports(len(_PORTS)), strict=True)}
        for template in _TEMPLATES.iterdir():
            path = self.folder / template.name
            path.touch(0o600 if template.name == "slurmdbd.conf" else 0o644)
            path.write_text(Template(template.read_text(encoding="utf-8")).substitute(values | ports), encoding="utf-8")
        (self.folder / "env.sh").write_text(self.exports, encoding="utf-8")

    def _make_database(self) -> None:
        with (self.folder / "log" / "mariadbd.out").open("wb") as log:
            done = subprocess.run(
                [str(program("mariadbd")), *database.options(self.folder / "database"), "--bootstrap"],
                input=database.system_tables(),
                env=self._daemon_environment(),
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            raise ClusterError(f"the database cannot be made:\n{self._last_lines('mariadbd')}")

    def _make_accounts(self) -> None:
        user = getpass.getuser()
        for words in (
            f"add qos {DEV_QOS} set MaxSubmitJobsPerUser={DEV_MAX_SUBMIT}",
            f"add account {ACCOUNT} cluster={self.name}",
            f"add user {user} account={ACCOUNT} cluster={self.name}",
            f"modify user {user} set qos=normal,{DEV_QOS} defaultqos=normal",
        ):
            self.run("sacctmgr", "--immediate", *words.split())

    def _daemon(self, name: str, *arguments: str, log: str = "") -> None:
        """Starts a daemon as nobody's child, marked as this cluster's from its first moment."""
        with (self.folder / "log" / f"{log or name}.out").open("ab") as out:
            subprocess.run(
                ["setsid", "--fork", str(program(name)), *arguments],
                env=self._daemon_environment(),
                cwd=self.folder / "run",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                check=True,
            )

    def _daemon_environment(self) -> dict[str, str]:
        names = "PATH", "LANG", "HOME", "LD_LIBRARY_PATH"
        inherited = {name: os.environ[name] for name in names if name in os.environ}
        own = {MARK: str(self.folder), "MYSQL_UNIX_PORT": str(self.folder / "database" / "socket")}
        return inherited | self.environment | own

    def _succeeds(self, *command: str) -> bool:
        return self.run(*command, check=False).returncode == 0

    def _wait_for(self, daemon: str, is_ready: Callable[[], bool]) -> None:
        began = seen = time.monotonic()
        while not is_ready():
            now = time.monotonic()
            seen = now if self._lives(daemon) else seen  # a process cannot be recognised in the middle of its exec
            if now - began > _START_S or now - seen > _ABSENT_S:
                raise ClusterError(f"{daemon} does not start:\n{self._last_lines(daemon)}")
            time.sleep(0.1)

    def _lives(self, daemon: str) -> bool:
        """Whether a daemon runs, or `setsid` is about to become it."""
        return any(Path(argument).name == daemon for p in self._processes() for argument in p.command[:3])

    def _last_lines(self, daemon: str) -> str:
        logs = sorted((self.folder / "log").glob(f"{daemon}.*"))
        lines = [line for log in logs for line in log.read_text(errors="replace").splitlines()]
        return "\n".join(f"  {line}" for line in lines[-12:])


_FOLDERS = ("database", "dev", "log", "munge", "run", "spool", "state")
_FILES = ("env.sh", *sorted(path.name for path in _TEMPLATES.iterdir()))
_MUNGE_FILES = {"socket": "socket", "key-file": "key", "seed-file": "seed", "pid-file": "pid", "log-file": "log"}


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found, so that none comes twice."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
