"""Sites: what is read from sbatch files, what is wrong in them, and what becomes of it in submitit's hands."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluence.errors import StudyError
from jobs.sbatchfile import minutes, read_sbatch
from jobs.sites import TEMPLATES, Site, load_site, site_names
from tests.cluster.cluster import ACCOUNT, Cluster

WORDS = {
    "project": "xyz",
    "account": "group",
    "partition": "cpu",
    "gpu_partition": "gpu",
    "bigmem_partition": "bigmem",
    "venv": "/work/my venv",
    "scratch": "/scratch",
}
GPU = """\
#!/bin/bash
#SBATCH --partition=gpu --time=10:00:00
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=10
#FLUENCE max-time=20:00:00
#FLUENCE cores-per-node=40
#FLUENCE gpus-per-node=4
"""
CPU = "#!/bin/bash\n#SBATCH --time=60\n#SBATCH --cpus-per-task=2\n"


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUENCE_SETTINGS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def site(folder: Path, gpu: str = GPU, cpu: str = CPU, **words: str) -> Site:
    here = folder / "here"
    here.mkdir(exist_ok=True)
    for name, text in (("gpu", gpu), ("cpu", cpu), ("bigmem", CPU)):
        (here / f"{name}.sbatch").write_text(text, encoding="utf-8")
    return load_site(str(here), words)


# ── Time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TIMES = {
    "30": 30, "30:00": 30, "0:30": 1, "1:30": 2, "20:00:00": 1200, "00:00:01": 1, "2-0": 2880, "1-12": 2160,
    "1-12:30": 2190, "1-12:30:30": 2191, "90:00:00": 5400, "100:00": 100,
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TIMES.items())
def test_a_time_in_any_of_slurms_ways(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "2h", "1:2:3:4", "-5", "1.5", "UNLIMITED", "0", "0-0", "1-", "٣", "10:", " 5", "5\n"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time|means no limit"):
        minutes(text)


@given(st.integers(0, 99), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_times_round_up_to_whole_minutes(days: int, hours: int, mins: int, seconds: int) -> None:
    total = 24 * 60 * days + 60 * hours + mins + (seconds > 0)
    if total:
        assert minutes(f"{days}-{hours}:{mins:02}:{seconds:02}") == total
        assert minutes(f"{24 * days + hours}:{mins:02}:{seconds:02}") == total


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_directives_in_every_spelling(tmp_path: Path) -> None:
    text = """#!/bin/bash
#SBATCH -p gpu -t10 --exclusive
#SBATCH --mail-user me@lab.org   # who
#SBATCH --comment="two words" --requeue
##SBATCH --qos=off
# a comment

export A=1
# part of the prologue
echo done
"""
    path = tmp_path / "gpu.sbatch"
    path.write_text(text)
    file = read_sbatch(path, {})
    assert file.mistakes == ()
    assert {name: d.value for name, d in file.directives.items()} == {
        "partition": "gpu",
        "time": "10",
        "exclusive": None,
        "mail-user": "me@lab.org",
        "comment": "two words",
        "requeue": None,
    }
    assert [d.line for d in file.directives.values()] == [2, 2, 2, 3, 4, 4]
    assert file.prologue == ("export A=1", "# part of the prologue", "echo done")


def test_placeholders_in_shell_are_quoted_and_shell_stays_shell(tmp_path: Path) -> None:
    line = "source {venv}/activate ${HOME} && awk '{print}' {venv}"
    found = site(tmp_path, cpu=f"{CPU}{line}\n", venv="/a b;rm -rf $HOME")
    quoted = "'/a b;rm -rf $HOME'"
    assert found["cpu"].file.prologue == (f"source {quoted}/activate ${{HOME}} && awk '{{print}}' {quoted}",)


def test_placeholders_come_from_the_command_line_then_the_site_then_all_sites(tmp_path: Path) -> None:
    settings = tmp_path / "config" / "fluence" / "settings.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("placeholders: {a: all, b: all, c: all}\nsites: {here: {b: site, c: site}}\n")
    cpu = f"{CPU}#SBATCH --qos={{a}}-{{b}}-{{c}}\n"
    assert site(tmp_path, cpu=cpu, c="line")["cpu"].directives["qos"] == "all-site-line"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accounts: {}\n", "line 1: accounts: is not a setting"),
        ("placeholders: [1]\n", "line 1: placeholders: must be a section"),
        ("sites:\n  here:\n    a: [1]\n", "line 3: sites.here.a: must be text"),
        ("a: b: c\n", "line 1: YAML"),
    ],
)
def test_wrong_settings_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setenv("FLUENCE_SETTINGS", str(tmp_path / "mine.yaml"))
    with pytest.raises(StudyError, match=r"mine\.yaml") as error:
        site(tmp_path)
    assert said in str(error.value)


def test_settings_that_are_named_must_exist_and_empty_ones_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUENCE_SETTINGS", str(tmp_path / "mine.yaml"))
    with pytest.raises(StudyError, match="FLUENCE_SETTINGS names it"):
        site(tmp_path)
    (tmp_path / "mine.yaml").write_text("# nothing yet\n")
    assert site(tmp_path).name == "here"


# ── Mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────

MISTAKES = [
    ("--ntasks-per-node=4", "--ntasks-per-node=2", "line 3: here/gpu.sbatch --ntasks-per-node: 2 processes for 4 GPUs"),
    ("--time=10:00:00", "--time=ten", "line 2: here/gpu.sbatch --time: 'ten' is no time"),
    ("--time=10:00:00", "--time=21:00:00", "21:00:00 is above the cap of 20:00:00"),
    ("--time=10:00:00", "", "--time: is missing"),
    ("max-time=20:00:00", "max-time=soon", "line 6: here/gpu.sbatch max-time: must be a time"),
    ("max-time=20", "max-tme=20", "did you mean max-time?"),
    ("#FLUENCE max", "#FLUENCE memory=ignored\n#SBATCH --mem=4G\n#FLUENCE max", "memory comes with the cores"),
    ("--cpus-per-task=10", "--cpus-per-task=11", "4 processes × 11 cores are more than the 40 cores"),
    ("--cpus-per-task=10", "--cpus-per-task=many", "must be a whole number; found many"),
    ("--gres=gpu:4", "--gres=gpu:8 --ntasks-per-node=8", "--ntasks-per-node: is written twice, first on line 3"),
    ("--gres=gpu:4", "--gres=gpu:8", "8 GPUs, but a node has 4"),
    ("--gres=gpu:4", "--gres=gpu:4 --gpus-per-node=2", "--gres 4 and --gpus-per-node 2"),
    ("--gres=gpu:4", "--gres=tmp:4", "a GPU file must ask for GPUs"),
    ("--gres=gpu:4", "--gres=gpu:a:b:4", "tells no number of GPUs"),
    ("--gres=gpu:4", "--gres=gpu:4 --array=0-3", "--array: is set by the launcher"),
    ("--gres=gpu:4", "--gres=gpu:4 --comment=mine", "--comment: is set by the launcher"),
    ("--gres=gpu:4", "--gres=gpu:4 --signal=B:USR2@60", "with B: it reaches the shell"),
    ("--gres=gpu:4", "--gres=gpu:4 --signal=USR2@36000", "36000 s before the end is before the start"),
    ("--gres=gpu:4", "--gres=gpu:4 --requeue\n#FLUENCE requeue=no", "does not requeue"),
    ("--gres=gpu:4", "gres=gpu:4", "`gres=gpu:4` is no option"),
    ("--gres=gpu:4", "--gres='gpu:4", "a quote is not closed"),
    ("#!/bin/bash\n", "\n", "wants `#!/bin/bash`"),
    ("#SBATCH --gres", "cd /\n#SBATCH --gres", "stands after the first command"),
    ("--gres=gpu:4", "--gres=gpu:4 --qos={quality}", "line 4: here/gpu.sbatch {quality}: has no value"),
]


@pytest.mark.parametrize(("right", "wrong", "said"), MISTAKES, ids=[said[-40:] for *_, said in MISTAKES])
def test_each_contradiction_is_named_with_its_line(tmp_path: Path, right: str, wrong: str, said: str) -> None:
    with pytest.raises(StudyError) as error:
        site(tmp_path, gpu=GPU.replace(right, wrong))
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_gpus_in_a_cpu_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"line 4: here/cpu\.sbatch --gres: cpu\.sbatch is for jobs without GPUs"):
        site(tmp_path, cpu=f"{CPU}#SBATCH --gres=gpu:1\n")


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="here: 3 mistakes"):
        site(tmp_path, gpu=GPU.replace("10:00:00", "soon"), cpu=f"{CPU}#SBATCH --qos={{q}}\n#FLUENCE x=1\n")


def test_an_unset_placeholder_says_where_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"jean-zay-v100/gpu\.sbatch \{project\}: has no value") as error:
        load_site("jean-zay-v100")
    assert "--set project=VALUE" in str(error.value)
    assert str(tmp_path / "config" / "fluence" / "settings.yaml") in str(error.value)


def test_a_placeholder_cannot_smuggle_options_in(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is set to 'xyz --uid=0'"):
        load_site("jean-zay-v100", {"project": "xyz --uid=0"})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    shutil.copytree(TEMPLATES / "test-cluster", tmp_path / "here")
    (tmp_path / "here" / "bigmem.sbatch").unlink()
    with pytest.raises(StudyError, match=r"here/bigmem\.sbatch: is missing \(copy .*generic/bigmem\.sbatch"):
        load_site(str(tmp_path / "here"))


@pytest.mark.parametrize("name", ["jean-zay", "..", "", "a b", "jean-zay-v100\n", "README.md", "/no/such/folder"])
def test_an_unknown_site(name: str) -> None:
    with pytest.raises(StudyError, match="there is no such"):
        load_site(name)


# ── The sites that come with fluence ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", site_names())
def test_each_site_is_free_of_mistakes(name: str) -> None:
    found = load_site(name, WORDS)
    assert found["gpu"].gpus_per_node == found["gpu"].tasks_per_node
    assert not found["cpu"].gpus_per_node
    for resources in found.resources.values():
        longest = resources.caps.max_time_min
        assert longest is None or resources.time_min <= longest - 10


@pytest.mark.parametrize(
    ("name", "units"), [("jean-zay-v100", 10), ("jean-zay-a100", 20), ("jean-zay-h100", 10), ("generic", 10)]
)
def test_ten_hours_of_one_gpu(name: str, units: float) -> None:
    assert load_site(name, WORDS)["gpu"].billed_hours(10) == units


def test_what_needs_no_gpu_is_free_on_jean_zay_and_counted_by_cores_elsewhere() -> None:
    assert load_site("jean-zay-v100", WORDS)["bigmem"].billed_hours(10) == 0
    assert load_site("meso-lr", WORDS)["cpu"].billed_hours(10) == 70


def test_cores_above_a_gpus_share_are_billed_as_gpus(tmp_path: Path) -> None:
    """One GPU of four with 20 of 40 cores is half a node: two GPUs. 11 cores are a little more than one share."""
    for cores, gpus in ((10, 1), (11, 2), (20, 2), (40, 4)):
        one = GPU.replace("gpu:4", "gpu:1").replace("node=4\n#SBATCH --g", "node=1\n#SBATCH --g")
        found = site(tmp_path, gpu=f"{one.replace('task=10', f'task={cores}')}#FLUENCE billing=gpu\n")
        assert found["gpu"].billed_hours(3) == 3 * gpus


@pytest.mark.parametrize(
    ("cap", "stages"),
    [("", ("train", "measure")), ("train,extract", ("train", "extract")), ("none", ()), ("measure", ("measure",))],
)
def test_which_stages_share_a_task(tmp_path: Path, cap: str, stages: tuple[str, ...]) -> None:
    line = f"#FLUENCE parallel={cap}\n" if cap else ""
    assert site(tmp_path, gpu=f"{GPU}{line}")["gpu"].caps.parallel == stages


def test_a_stage_that_nobody_can_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError) as error:
        site(tmp_path, gpu=f"{GPU}#FLUENCE parallel=train,report\n")
    assert "must be stages with commas between them (train, extract, measure)" in str(error.value)


def test_each_template_is_shell_that_bash_reads() -> None:
    for path in sorted(TEMPLATES.glob("*/*.sbatch")):
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0, path


def test_a_node_for_oneself_is_billed_whole(tmp_path: Path) -> None:
    two = GPU.replace("--gres=gpu:4", "--gres=gpu:1 --nodes=2 --exclusive").replace(
        "per-node=4\n#SBATCH", "per-node=1\n#SBATCH"
    )
    found = site(tmp_path, gpu=f"{two}#FLUENCE billing=gpu\n#FLUENCE billing-factor=0.5\n")
    assert found["gpu"].billed_hours(3) == 3 * 2 * 4 * 0.5


# ── submitit ─────────────────────────────────────────────────────────────────────────────────────────────────────


def submitit_script(found: Site, folder: Path, num_tasks: int = 3) -> str:
    """The script that submitit writes, as its own code writes it."""
    from submitit.slurm.slurm import SlurmExecutor

    executor = SlurmExecutor.__new__(SlurmExecutor)
    shared = {"tasks_per_node": "ntasks_per_node", "timeout_min": "time"}
    given = found.submitit_parameters("gpu").items()
    executor.folder = folder
    executor.parameters = {shared.get(name, name).removeprefix("slurm_"): value for name, value in given}
    executor.parameters["map_count"] = num_tasks
    return executor._make_submission_file_text("python -m task", "x")


def test_submitit_takes_the_parameters_and_writes_this_script(tmp_path: Path) -> None:
    script = submitit_script(load_site("jean-zay-v100", WORDS), tmp_path)
    for line in (
        "--account=xyz@v100",
        "--array=0-2%3",
        "--constraint=v100-32g",
        "--cpus-per-task=10",
        "--gres=gpu:1",
        "--hint=nomultithread",
        "--kill-on-invalid-dep=yes",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--open-mode=append",
        "--partition=gpu_p13",
        "--qos=qos_gpu-t3",
        "--requeue",
        "--signal=USR2@360",
        "--time=1190",
        "--wckey=''",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "\nsource /etc/profile\nmodule purge\nmodule load pytorch-gpu/py3/2.8.0\n" in script
    srun = next(line for line in script.splitlines() if line.startswith("srun"))
    assert "--kill-on-bad-exit=1 --cpus-per-task=10 python -m task" in srun


def test_the_parameters_have_names_that_submitit_knows() -> None:
    from submitit import AutoExecutor
    from submitit.slurm.slurm import SlurmExecutor

    for name in load_site("meso-lr", WORDS).submitit_parameters("gpu"):
        known = SlurmExecutor._valid_parameters() if name.startswith("slurm_") else AutoExecutor._typed_parameters()
        assert name.removeprefix("slurm_") in known


def test_without_requeue_slurm_is_told_so(tmp_path: Path) -> None:
    others = site(tmp_path, gpu=f"{GPU}#FLUENCE requeue=no\n").submitit_parameters("gpu")["slurm_additional_parameters"]
    assert "requeue" not in others
    assert others["no-requeue"] is True


def test_unknown_options_pass_through(tmp_path: Path) -> None:
    found = site(tmp_path, gpu=GPU.replace("--gres", "--licenses=matlab@x:2 --reservation=r1 --spread-job --gres"))
    others = found.submitit_parameters("gpu")["slurm_additional_parameters"]
    assert {"licenses": "matlab@x:2", "reservation": "r1", "spread-job": True}.items() <= others.items()


# ── A real Slurm ─────────────────────────────────────────────────────────────────────────────────────────────────

PARTITIONS = {"prepost": "bigmem", "gpu_p13": "gpu", "gpu_p5": "gpu", "gpu_p6": "gpu"}
CONSTRAINTS = {"a100": "v100", "h100": "v100"}


def renamed(script: str) -> str:
    """A site's script with the partitions, accounts, QoS and constraints that the test cluster has."""
    lines = []
    for line in script.splitlines():
        option, equals, value = line.partition("=")
        match option.removeprefix("#SBATCH --"):
            case "account":
                value = ACCOUNT
            case "qos":
                value = "normal"
            case "partition":
                value = PARTITIONS.get(value, value)
            case "constraint":
                value = CONSTRAINTS.get(value, value)
            case "time":
                value = "19:50:00"
        lines.append(f"{option}{equals}{value}")
    return "\n".join(lines) + "\n"


@pytest.mark.slurm
@pytest.mark.parametrize("kind", ["gpu", "cpu", "bigmem"])
@pytest.mark.parametrize("name", site_names())
def test_sbatch_takes_each_template(slurm_cluster: Cluster, tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"{kind}.sbatch"
    path.write_text(renamed(load_site(name, WORDS).script(kind)))  # type: ignore[arg-type]
    done = slurm_cluster.run("sbatch", "--test-only", str(path), check=False)
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr


@pytest.mark.slurm
def test_sbatch_takes_what_submitit_writes(slurm_cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "array.sbatch"
    path.write_text(submitit_script(load_site("test-cluster"), tmp_path))
    job = slurm_cluster.sbatch("--hold", str(path))
    found = slurm_cluster.job(job)
    assert (found["Requeue"], found["TimeLimit"], found["Partition"]) == ("1", "00:10:00", "gpu")


@pytest.mark.slurm
def test_submitit_runs_an_array_with_a_site(slurm_cluster: Cluster, tmp_path: Path) -> None:
    from submitit import AutoExecutor

    found = site(tmp_path, gpu=(TEMPLATES / "test-cluster" / "gpu.sbatch").read_text() + "export FROM_PROLOGUE=yes\n")
    executor = AutoExecutor(tmp_path / "jobs", cluster="slurm")
    executor.update_parameters(**found.submitit_parameters("gpu"))
    jobs = executor.map_array(os.getenv, ["FROM_PROLOGUE", "CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK"])
    for job in jobs:
        slurm_cluster.wait_for_job(job.job_id, "COMPLETED")
    assert [job.result() for job in jobs] == ["yes", jobs[1].result(), "1"]
    assert jobs[1].result() in {"0", "1", "2", "3"}


@pytest.mark.slurm
@pytest.mark.parametrize("text", TIMES)
def test_slurm_reads_times_as_we_do(slurm_cluster: Cluster, text: str) -> None:
    job = slurm_cluster.sbatch("--hold", "--partition=cpu", f"--time={text}", "--output=/dev/null", "--wrap=true")
    assert minutes(slurm_cluster.job(job)["TimeLimit"]) == minutes(text)
