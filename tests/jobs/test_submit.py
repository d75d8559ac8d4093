"""What is handed to sbatch, and that nothing is handed to it twice. Slurm is a double here; the scripts are golden.

After a change that is meant, `FLUENCE_WRITE_GOLDEN=1 pytest tests/jobs/test_submit.py` writes the scripts anew.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fluence.errors import RunError, StudyError
from fluence.layout import Layout
from fluence.store.outcome import Outcome, write_outcome
from fluence.study import Study
from jobs import cli
from jobs.batches import Choice
from jobs.journal import Journal
from jobs.pipeline import output_of
from jobs.sites import Site, load_site
from jobs.slurm import Answer, NoAnswer, Slurm
from jobs.snapshot import Snapshot
from jobs.submit import Options, Submission, submit
from tests.jobs.slurm_double import queue_line

ALL = Choice()
GOLDEN = Path(__file__).with_name("golden")


@dataclass
class Sbatch:
    """A Slurm that takes every script, and keeps it in the queue until a test ends it.

    Attributes:
        scripts: what sbatch was given, by job id.
        queue: elements of arrays, or jobs, that are queued.
        refuses: what sbatch says instead of a job id, from the job with this number on.
        loses: number of the job whose id never reaches the caller.
        max_array_size: longest array.
        qos: limits of QoS, as sacctmgr prints them.
        is_reachable: whether squeue answers.
    """

    scripts: dict[str, str] = field(default_factory=dict)
    queue: dict[str, str] = field(default_factory=dict)
    refuses: tuple[int, str] = (10**6, "")
    loses: int = 0
    max_array_size: int = 1001
    qos: str = "normal|\n"
    is_reachable: bool = True

    def __call__(self, arguments: Sequence[str], timeout_s: float) -> Answer:
        program = arguments[0]
        if program == "sbatch":
            return self._sbatch(Path(arguments[-1]).read_text())
        if program == "squeue" and not self.is_reachable:
            return Answer(1, "", "squeue: error: Unable to contact slurm controller\n")
        if program == "squeue" and "--format=%a|%q" in arguments:
            return Answer(0, "fluence|normal\n" * len(self.queue))
        if program == "squeue":
            lines = [queue_line(element, "PENDING", name=name, comment=name) for element, name in self.queue.items()]
            return Answer(0, "\n".join(lines))
        if program == "scontrol":
            return Answer(0, f"Configuration data\nMaxArraySize            = {self.max_array_size}\n")
        if program == "sacctmgr":
            return Answer(0, self.qos if "qos" in arguments else "fluence||normal\n")
        return Answer(1, "", "Slurm accounting storage is disabled\n")

    def _sbatch(self, script: str) -> Answer:
        number = len(self.scripts) + 1
        if number >= self.refuses[0]:
            return Answer(1, "", self.refuses[1])
        job = str(100 * number)
        self.scripts[job] = script
        name = option(script, "job-name")
        last = re.search(r"--array=0-(\d+)", script)
        elements = [f"{job}_{index}" for index in range(int(last[1]) + 1)] if last else [job]
        self.queue |= dict.fromkeys(elements, name)
        if number == self.loses:
            raise NoAnswer("sbatch did not answer within 120 s")
        return Answer(0, f"{job}\n")


def option(script: str, name: str) -> str:
    found = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.M)
    return found[1].strip("'") if found else ""


def study_of(num_seeds: int = 2) -> Snapshot:
    content = {
        "name": "tiny",
        "data": {"datasets": {"faces": {"kind": "synthetic"}}, "training": "faces", "rated": "faces"},
        "models": {"small": {"kind": "vae"}},
        "grid": {"seeds": list(range(num_seeds))},
    }
    return Snapshot(Study.model_validate(content), {"faces": "0" * 16})


@pytest.fixture
def site() -> Site:
    return load_site("test-cluster")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "study")


def send(
    layout: Layout, site: Site, sbatch: Sbatch, seeds: int = 2, choice: Choice = ALL, dry_run: bool = False
) -> Submission:
    return submit(study_of(seeds), layout, site, Options(choice), Slurm(run=sbatch), dry_run)


def finish(layout: Layout, *task_ids: str, seeds: int = 2, status: str = "done") -> None:
    """Writes the outcomes of tasks, and their artifacts; a task is named by its stage and seed, as in `train 0`."""
    for task in study_of(seeds).tasks:
        name = f"{task.stage} {task.run.seed}" if task.run else task.stage
        if name in task_ids:
            output_of(task, layout).parent.mkdir(parents=True, exist_ok=True)
            output_of(task, layout).touch()
            write_outcome(layout.outcome(task.stage, task.name), Outcome(status, task.key))  # type: ignore[arg-type]


def stages(done: Submission) -> list[tuple[str, int]]:
    return [(sent.draft.stage, len(sent.draft.tasks)) for sent in done.sent]


# ── Scripts ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["test-cluster", "jean-zay-v100"])
def test_scripts_are_golden(name: str, layout: Layout) -> None:
    sbatch = Sbatch()
    submit(study_of(), layout, load_site(name, {"project": "xyz"}), Options(), Slurm(run=sbatch))
    by_stage = {option(script, "job-name").split("-")[-1]: script for script in sbatch.scripts.values()}
    for stage in ("pack", "train", "measure"):  # one of each class; pack is one job, the others are arrays
        found = by_stage[stage].replace(str(layout.root), "/study").replace(sys.executable, "/bin/python")
        found = re.sub(r"fl-[0-9a-f]{12}", "fl-0123456789ab", found)
        found = re.sub(r"(?<=code/)[0-9a-f]{16}|(?<=snapshots/)[0-9a-f]{16}", "0123456789abcdef", found)
        found = found.replace(Journal(layout).mark, "ba9876543210")
        path = GOLDEN / f"{name}-{stage}.sh"
        if os.environ.get("FLUENCE_WRITE_GOLDEN") == "1":
            path.write_text(found)
        assert found == path.read_text()


@pytest.mark.parametrize("cap", ["", "#FLUENCE parallel=train,extract\n"])
def test_stages_that_share_a_task_ask_for_all_processes(layout: Layout, tmp_path: Path, cap: str) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in load_site("test-cluster").folder.iterdir():
        text = path.read_text().replace("--nodes=1", "--nodes=2")
        text = text.replace("--ntasks-per-node=1", "--ntasks-per-node=4").replace("gpu:1", "gpu:v100:4")
        text = text.replace("#FLUENCE", f"{cap}#FLUENCE", 1) if path.name == "gpu.sbatch" else text
        (folder / path.name).write_text(text)
    sbatch = Sbatch()
    send(layout, load_site(str(folder)), sbatch)
    asked = {
        option(script, "job-name").split("-")[-1]: [option(script, o) for o in ("nodes", "ntasks-per-node", "gres")]
        for script in sbatch.scripts.values()
    }
    assert asked["train"] == ["2", "4", "gpu:v100:4"]
    assert asked["extract"] == (["2", "4", "gpu:v100:4"] if cap else ["1", "1", "gpu:v100:1"])
    assert asked["measure"] == ["2", "4", ""]
    assert asked["analyse"] == asked["report"] == ["1", "1", ""]
    assert asked["pack"] == ["1", "1", ""]


def test_jobs_see_the_code_as_it_was(layout: Layout, site: Site) -> None:
    sbatch = Sbatch()
    send(layout, site, sbatch)
    folders = {re.search(r"PYTHONPATH=(\S+?)\$", script)[1] for script in sbatch.scripts.values()}  # type: ignore[index]
    (folder,) = folders
    assert Path(folder).is_relative_to(layout.root)
    for path in (Path(cli.__file__), Path(cli.__file__).parents[1] / "analysis" / "templates" / "report.html"):
        assert (Path(folder) / path.relative_to(Path(cli.__file__).parents[1])).read_bytes() == path.read_bytes()
    assert all("export PYTHONSAFEPATH=1" in script for script in sbatch.scripts.values())


def test_everything_a_job_reads_is_there_before_sbatch(layout: Layout, site: Site) -> None:
    sbatch = Sbatch()
    take, seen = sbatch._sbatch, []

    def look(script: str) -> Answer:
        (folder,) = re.findall(r"^cd (\S+)$", script, re.M)
        delayed = pickle.loads((Path(folder) / "task.pkl").read_bytes())
        seen.append((delayed.function.stage, delayed.function.names, delayed.function.snapshot.exists()))
        return take(script)

    sbatch._sbatch = look  # type: ignore[method-assign]
    send(layout, site, sbatch)
    assert [(stage, len(names)) for stage, names, _ in seen] == [
        ("pack", 1), ("train", 2), ("extract", 2), ("measure", 2), ("analyse", 1), ("report", 1),
    ]  # fmt: skip
    assert all(there for _, _, there in seen)


# ── Chains ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stages_are_chained_task_by_task(layout: Layout, site: Site) -> None:
    sbatch = Sbatch()
    send(layout, site, sbatch)
    assert [option(script, "dependency") for script in sbatch.scripts.values()] == [
        "",
        "afterok:100",
        "aftercorr:200,afterok:100",
        "aftercorr:300",
        "afterany:100:200:300:400",
        "afterany:100:200:300:400:500",
    ]
    assert all("kill-on-invalid-dep=yes" in script for script in sbatch.scripts.values())


def test_one_run_alone_is_no_array(layout: Layout, site: Site) -> None:
    sbatch = Sbatch()
    send(layout, site, sbatch, seeds=1)
    assert not any("--array" in script for script in sbatch.scripts.values())
    assert option(sbatch.scripts["300"], "dependency") == "afterok:200:100"


def test_arrays_are_cut_alike(layout: Layout, site: Site) -> None:
    """Three arrays of the longest length each, chained in pairs; the last one has a single run."""
    sbatch = Sbatch(max_array_size=2)
    done = send(layout, site, sbatch, seeds=5)
    assert stages(done) == [
        ("pack", 1),
        *[(stage, number) for number in (2, 2, 1) for stage in ("train", "extract", "measure")],
        ("analyse", 1), ("report", 1),
    ]  # fmt: skip
    assert option(sbatch.scripts["600"], "dependency") == "aftercorr:500,afterok:100"
    assert option(sbatch.scripts["900"], "dependency") == "afterok:800:100"


def test_no_more_than_the_slots_that_are_free(layout: Layout, site: Site) -> None:
    """Ten slots: one is for packing and two for analysis and report; two runs of three tasks fit, of five."""
    sbatch = Sbatch(qos="normal|10\n")
    done = send(layout, site, sbatch, seeds=5)
    assert stages(done) == [("pack", 1), ("train", 2), ("extract", 2), ("measure", 2)]
    assert [task.stage for task in done.drafts.left_out] == 3 * ["train", "extract", "measure"] + ["analyse", "report"]
    assert send(layout, site, sbatch, seeds=5).sent == ()
    sbatch.queue.clear()
    finish(
        layout, "pack", *(f"{stage} {seed}" for stage in ("train", "extract", "measure") for seed in (0, 1)), seeds=5
    )
    assert stages(send(layout, site, sbatch, seeds=5)) == [("train", 2), ("extract", 2), ("measure", 2)]


def test_the_sites_own_cap_counts(layout: Layout, tmp_path: Path, site: Site) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    for path in site.folder.iterdir():
        (folder / path.name).write_text(
            path.read_text().replace("#FLUENCE requeue", "#FLUENCE max-submit=6\n#FLUENCE requeue")
        )
    assert stages(send(layout, load_site(str(folder)), Sbatch(), seeds=5)) == [
        ("pack", 1), ("train", 1), ("extract", 1), ("measure", 1),
    ]  # fmt: skip


# ── Again ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_submission_sends_nothing(layout: Layout, site: Site) -> None:
    sbatch = Sbatch()
    assert len(send(layout, site, sbatch).sent) == 6
    again = send(layout, site, sbatch)
    assert again.sent == ()
    assert again.num_in_flight == 9


def test_only_what_is_missing_is_sent(layout: Layout, site: Site) -> None:
    """One run is measured; one is trained, and its extraction was cancelled while measuring was still queued."""
    sbatch = Sbatch()
    send(layout, site, sbatch)
    finish(layout, "pack", "train 0", "extract 0", "measure 0", "train 1")
    sbatch.queue = {element: name for element, name in sbatch.queue.items() if element == "400_1"}
    again = send(layout, site, sbatch)
    assert stages(again) == [("extract", 1), ("analyse", 1), ("report", 1)]
    assert option(sbatch.scripts["700"], "dependency") == ""
    assert option(sbatch.scripts["800"], "dependency") == "afterany:700:400"


def test_what_is_running_is_waited_for(layout: Layout, site: Site) -> None:
    """Training runs; what came after it was cancelled."""
    sbatch = Sbatch()
    send(layout, site, sbatch)
    finish(layout, "pack")
    sbatch.queue = {element: name for element, name in sbatch.queue.items() if element.startswith("200_")}
    again = send(layout, site, sbatch)
    assert stages(again) == [("extract", 2), ("measure", 2), ("analyse", 1), ("report", 1)]
    assert option(sbatch.scripts["700"], "dependency") == "afterany:200"


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_an_answer_that_was_lost_is_found_again(layout: Layout, site: Site, lost: int) -> None:
    """sbatch took the job, and then the line went dead."""
    sbatch = Sbatch(loses=lost)
    with pytest.raises(RunError, match="did not answer"):
        send(layout, site, sbatch)
    assert len(sbatch.scripts) == lost
    sbatch.loses = 0
    again = send(layout, site, sbatch)
    assert len(again.sent) == 6 - lost
    names = [option(script, "job-name").split("-")[-1] for script in sbatch.scripts.values()]
    assert names == ["pack", "train", "extract", "measure", "analyse", "report"]
    assert [batch.job for batch in Journal(layout).read()] == [str(100 * n) for n in range(1, 7)]


def test_without_a_journal_jobs_are_found_by_their_folders(layout: Layout, site: Site) -> None:
    sbatch = Sbatch()
    send(layout, site, sbatch)
    layout.journal.unlink()
    assert send(layout, site, sbatch).sent == ()


def test_a_refusal_is_shown_and_the_rest_comes_later(layout: Layout, site: Site) -> None:
    sbatch = Sbatch(refuses=(3, "sbatch: error: Batch job submission failed: Invalid account\n"))
    with pytest.raises(RunError, match=r"extract: .*Invalid account[\s\S]*the same command sends the rest"):
        send(layout, site, sbatch)
    sbatch.refuses = (100, "")
    assert stages(send(layout, site, sbatch)) == [("extract", 2), ("measure", 2), ("analyse", 1), ("report", 1)]


def test_without_a_queue_nothing_is_sent(layout: Layout, site: Site) -> None:
    with pytest.raises(NoAnswer, match="it might be queued already"):
        send(layout, site, Sbatch(is_reachable=False))


def test_failures_are_not_sent_again(layout: Layout, site: Site) -> None:
    finish(layout, "pack")
    finish(layout, "train 0", status="failed")
    done = send(layout, site, Sbatch())
    assert done.num_failed == 1
    assert all(task.run is None or task.run.seed == 1 for sent in done.sent for task in sent.draft.tasks)


# ── Choice ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stages_can_be_chosen(layout: Layout, site: Site) -> None:
    assert stages(send(layout, site, Sbatch(), choice=Choice(stages=("pack", "train")))) == [("pack", 1), ("train", 2)]


def test_what_would_find_nothing_to_do_is_not_sent(layout: Layout, site: Site) -> None:
    done = send(layout, site, Sbatch(), choice=Choice(stages=("extract",)))
    assert done.sent == ()
    assert len(done.drafts.in_vain) == 2


def test_runs_can_be_chosen(layout: Layout, site: Site) -> None:
    done = send(layout, site, Sbatch(), choice=Choice(runs=("small-all-s1",)))
    assert stages(done) == [("pack", 1), ("train", 1), ("extract", 1), ("measure", 1)]
    with pytest.raises(StudyError, match="--only 'small-all-s9': no run has that name; there are: small-all-s0"):
        send(layout, site, Sbatch(), choice=Choice(runs=("small-all-s9",)))


# ── Dry run and bad input ────────────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_writes_nothing(layout: Layout, site: Site) -> None:
    sbatch = Sbatch()
    done = send(layout, site, sbatch, dry_run=True)
    assert [option(sent.script, "dependency") for sent in done.sent][:3] == [
        "",
        "afterok:JOB1",
        "aftercorr:JOB2,afterok:JOB1",
    ]
    assert sbatch.scripts == {}
    assert not layout.root.exists()


@pytest.mark.parametrize("name", ["50%", "it's", 'say "hi"', "a\nb", "a:b", "back\\slash"])
def test_a_folder_that_slurm_would_misread_is_refused(tmp_path: Path, site: Site, name: str) -> None:
    with pytest.raises(StudyError, match="choose a folder without"):
        send(Layout(tmp_path / name), site, Sbatch())
    assert not (tmp_path / name).exists()


def test_a_folder_with_blanks_and_accents_stays_one_word(tmp_path: Path, site: Site) -> None:
    sbatch = Sbatch()
    send(Layout(tmp_path / "étude de beauté; rm -rf $HOME"), site, sbatch)
    for script in sbatch.scripts.values():
        for line in script.splitlines():
            assert "étude" not in line or line.count("'") >= 2


def test_two_thousand_runs_are_a_few_arrays(layout: Layout, site: Site) -> None:
    assert len(send(layout, site, Sbatch(), seeds=2000).sent) == 1 + 3 * 2 + 2


# ── The verb ─────────────────────────────────────────────────────────────────────────────────────────────────────

STUDY = """
name: tiny
data:
  datasets: {faces: {kind: synthetic, num_images: 40}}
  training: faces
  rated: faces
models: {small: {kind: vae, width: 0.125}}
grid: {seeds: [0, 1]}
"""


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sbatch:
    """The double in place of Slurm's commands, and a study file in the present folder."""
    sbatch = Sbatch()
    monkeypatch.setattr("jobs.submit.Slurm", lambda cache: Slurm(run=sbatch))
    monkeypatch.setenv("FLUENCE_SETTINGS", "")
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(STUDY)
    return sbatch


def test_the_verb_says_what_it_sends(slurm: Sbatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["submit", "tiny.yaml", "--site", "test-cluster", "--stage", "pack", "--stage", "train"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "job 100      pack: 1 task on test-cluster/cpu, as soon as there is room" in printed
    assert "job 200      train: 2 tasks on test-cluster/gpu, after what it needs" in printed
    assert (Path("results") / "tiny" / "study.yaml").read_text() == STUDY
    assert cli.main(command) == 0
    assert "3 tasks are queued or running already" in capsys.readouterr().out
    assert len(slurm.scripts) == 2


def test_the_verb_runs_dry(slurm: Sbatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Two trainings of one GPU each, and an A100 hour counts twice on this site."""
    Path("tiny.yaml").write_text(STUDY + "training: {epochs: 20000000, batch_size: 8}\n")
    sites = ["--site", "jean-zay-a100", "--set", "project=xyz"]
    assert cli.main(["submit", "tiny.yaml", *sites, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("#!/bin/bash") == 6
    assert "#SBATCH --account=xyz@a100" in printed
    assert "train small-all-s1" in printed
    hours = re.search(
        r"about ([\d.,]+) GPU hours for 2 trainings and extractions, ([\d.,]+) normalised GPU hours", printed
    )
    assert hours is not None
    assert float(hours[1]) > 0.1
    assert float(hours[2]) == pytest.approx(2 * float(hours[1]), rel=0.1)
    assert "GB of disk for the whole study" in printed
    assert printed.endswith("nothing was written and nothing was sent\n")
    assert not Path("results").exists()
    assert slurm.scripts == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--site", "jean-zay-a100"], "--set project=VALUE"),
        (["--site", "nowhere"], "there is no such site"),
        (["--site", "test-cluster", "--set", "project"], "write NAME=VALUE"),
        (["--site", "test-cluster", "--only", "$(reboot)"], "no run has that name"),
    ],
)
def test_wrong_usage_sends_nothing(
    slurm: Sbatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["submit", "tiny.yaml", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert slurm.scripts == {}
