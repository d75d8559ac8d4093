"""Slurm's commands: what they print is read right, and they are called seldom and without a shell."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.jobstate import Attempt, JobState, expanded, merged, read_accounts, read_queue, reason_in_words
from jobs.slurm import Look, NoAnswer, Slurm, Wanted, _compressed, run_command
from tests.jobs.slurm_double import NOW, SlurmDouble, account_line, queue_line

TOKEN = "fl-000000000001"

# As Slurm 22.05.8 printed them on the test cluster: an array of ten of which two were cancelled while they waited, one
# was requeued by hand, and seven cancelled while they ran; an array whose second and third parent failed.
RECORDED_QUEUE = f"""\
1_8                                     |CANCELLED           |Resources |          |1795197177          |1795197177|0:00|0         |0           |{TOKEN} train abcdef |{TOKEN}-train
1_1                                     |PENDING             |Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions|     |1795197240|1795204440|0:00|1         |0 |{TOKEN} train abcdef |{TOKEN}-train
1_0                                     |RUNNING             |None      |v100n1    |1795197149          |1795204349|1-02:03:04|0   |0           |{TOKEN} train abcdef |{TOKEN}-train
3                                       |PENDING             |Dependency|          |N/A                 |N/A       |0:00|0         |0           |(null)               |we|ird; na	me
17_1                                    |CANCELLED           |DependencyNeverSatisfied|  |1795197462|1795197462|0:00|0         |0           |(null)               |fl-000000000007-extract
"""  # noqa: E501
RECORDED_ACCOUNTS = f"""\
3|COMPLETED|0:0|3|1795197180|1795197183|v100n1|1|billing=1,cpu=1,node=1|billing=1,cpu=1,node=1|10||we|ird; na	me
1_0|CANCELLED by 0|0:0|28|1795197149|1795197177|v100n1|1|billing=1,cpu=1,gres/gpu=1,node=1|billing=1|120||{TOKEN}-train
1_1|REQUEUED|0:0|28|1795197149|1795197177|v100n1|1|billing=1,cpu=1,gres/gpu=1,node=1|billing=1|120||{TOKEN}-train
1_1|PENDING|0:0|0|Unknown|Unknown|None assigned|1||billing=1,cpu=1,gres/gpu=1,node=1|120||{TOKEN}-train
1_[8-9]|CANCELLED by 0|0:0|0|None|1795197177|None assigned|1||billing=1|120||{TOKEN}-train
17_[1-2]|CANCELLED|0:0|0|None|1795197462|None assigned|1||billing=1|10||fl-000000000007-extract
16_1|FAILED|1:0|2|1795197457|1795197459|v100n1|1|billing=1,cpu=1,gres/gpu=1,node=1|billing=1|10||fl-000000000006-train
"""


def test_lines_of_squeue_are_read_as_recorded() -> None:
    jobs = read_queue(RECORDED_QUEUE)
    running = jobs["1_0"]
    assert (running.state, running.node, running.start, running.elapsed_s) == ("RUNNING", "v100n1", 1795197149, 93784)
    assert running.words == "running"
    assert jobs["1_1"].explanation == "its nodes are down, or reserved for jobs that go first"
    assert jobs["1_1"].words == "interrupted and queued again"
    assert (jobs["3"].words, jobs["3"].start) == ("queued (Dependency)", None)
    assert jobs["3"].name == "we|ird; na\tme"
    assert jobs["17_1"].was_never_possible


def test_lines_of_sacct_are_read_as_recorded() -> None:
    jobs = read_accounts(RECORDED_ACCOUNTS)
    assert jobs["1_0"].words == "cancelled by hand"
    assert jobs["1_0"].reason == "by 0"
    assert (jobs["1_1"].restarts, jobs["1_1"].words) == (1, "preempted and queued again")
    assert jobs["1_1"].attempts == (Attempt("REQUEUED", 1795197149.0, 28.0, 1, 1, 7200.0),)
    assert jobs["1_8"].words == jobs["1_9"].words == "cancelled by hand"
    assert jobs["17_2"].words == "cancelled by Slurm"
    assert jobs["16_1"].explanation == "exit code 1"
    assert jobs["3"].name == "we|ird; na\tme"


def test_the_queue_says_what_is_and_the_accounts_what_was() -> None:
    queue, accounts = read_queue(RECORDED_QUEUE), read_accounts(RECORDED_ACCOUNTS)
    jobs = merged(queue, accounts)
    assert jobs["1_0"].words == "running"
    assert jobs["1_1"].words == "preempted and queued again"
    assert jobs["17_1"].reason == "by Slurm"
    assert merged({}, accounts)["1_1"].words == "no longer queued"
    assert merged(None, accounts)["1_1"].words == "preempted and queued again"


@pytest.mark.parametrize(
    ("state", "elapsed_s", "words"),
    [
        ("PREEMPTED", 40, "preempted and queued again"),
        ("REQUEUED", 40, "preempted and queued again"),
        ("REQUEUED", 7200 - 420, "time limit, queued again"),
        ("TIMEOUT", 7200, "time limit, queued again"),
        ("NODE_FAIL", 40, "node lost, queued again"),
    ],
)
def test_why_a_job_waits_again(state: str, elapsed_s: int, words: str) -> None:
    accounts = [account_line("7", state, elapsed_s=elapsed_s, start=NOW), account_line("7", "PENDING")]
    (job,) = read_accounts("\n".join(accounts)).values()
    assert (job.words, job.restarts) == (words, 1)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("OUT_OF_MEMORY", "out of memory"),
        ("TIMEOUT", "time limit"),
        ("NODE_FAIL", "node lost"),
        ("PREEMPTED", "preempted"),
        ("CANCELLED by 1000", "cancelled by hand"),
        ("FAILED", "failed"),
    ],
)
def test_ends_are_kept_apart(state: str, words: str) -> None:
    assert read_accounts(account_line("7", state, elapsed_s=3, start=NOW))["7"].words == words


def test_a_job_that_has_its_nodes_but_does_not_work_is_not_called_running() -> None:
    states = ("CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED")
    assert [JobState("7", state).words for state in states] == ["starting", "running", "ending", "suspended"]
    assert all(JobState("7", state).is_live for state in states)


def test_a_signal_is_told_from_an_exit_code() -> None:
    lines = [account_line("7", "FAILED", exit_="0:9", start=NOW), account_line("8", "FAILED", exit_="2:0", start=NOW)]
    jobs = read_accounts("\n".join(lines))
    assert [jobs[job].explanation for job in ("7", "8")] == ["ended by signal 9", "exit code 2"]


def test_gpus_are_counted_with_and_without_their_kind() -> None:
    plain = account_line("7", "COMPLETED", gpus=4, start=NOW, elapsed_s=1)
    kinds = plain.replace("gres/gpu=4", "gres/gpu:v100=3,gres/gpu:a100=1")
    both = plain.replace("gres/gpu=4", "gres/gpu=4,gres/gpu:v100=4")
    assert [read_accounts(line)["7"].attempts[0].num_gpus for line in (plain, kinds, both)] == [4, 4, 4]


def test_reasons_that_nobody_has_heard_of_stand_as_they_are() -> None:
    assert reason_in_words("FrontEndDown") == "FrontEndDown"
    assert reason_in_words("QOSMaxSubmitJobPerUserLimit") == "you have as many jobs queued as you may"
    assert reason_in_words("AssocGrpBillingMinutes") == "the project's hours are used up"


@given(st.sets(st.integers(0, 60), min_size=1), st.sets(st.integers(1, 9)))
def test_ids_are_put_together_and_taken_apart_again(indices: set[int], singles: set[int]) -> None:
    elements = [f"77_{index}" for index in indices] + [str(single) for single in singles]
    ids = _compressed(elements)
    assert len(ids) == 1 + len(singles)
    assert sorted(element for id_ in ids for element in expanded(id_)) == sorted(elements)


def test_throttles_and_steps_of_arrays_are_understood() -> None:
    assert expanded("5_[0-6:2,9%4]") == ["5_0", "5_2", "5_4", "5_6", "5_9"]
    assert expanded("5_3") == ["5_3"]


def wanted(*jobs: str, words: tuple[str, ...] = (), lost: tuple[str, ...] = ()) -> Wanted:
    return Wanted(frozenset(jobs), frozenset(words + lost), frozenset(lost), since=NOW)


def test_one_look_is_one_squeue_and_one_sacct_and_is_kept_for_a_minute(tmp_path: Path) -> None:
    double, clock = SlurmDouble([queue_line("7_0", "RUNNING", start=NOW)]), [float(NOW)]
    slurm = Slurm(tmp_path / "slurm.json", double, lambda: clock[0])
    first = slurm.look(wanted("7"))
    clock[0] += 59
    assert Slurm(tmp_path / "slurm.json", double, lambda: clock[0]).look(wanted("7")) == first
    assert double.programs() == ["squeue", "sacct"]
    clock[0] += 2
    assert slurm.look(wanted("7")).time == clock[0]
    assert double.programs() == ["squeue", "sacct"] * 2


def test_other_jobs_an_act_and_a_damaged_file_are_reasons_to_ask_again(tmp_path: Path) -> None:
    double, cache = SlurmDouble([queue_line("7_0", "PENDING")]), tmp_path / "slurm.json"
    slurm = Slurm(cache, double)
    for act in (lambda: None, slurm.forget, lambda: cache.write_text("[1]"), lambda: slurm.cancel(["7_0"])):
        act()
        slurm.look(wanted("7"))
    slurm.look(wanted("7", "8"))
    slurm.look(wanted("7", "8"), keep_s=0)
    assert double.programs().count("squeue") == 6
    assert json.loads(cache.read_text())["queue"].startswith("7_0|PENDING|")


def test_no_job_no_sacct(tmp_path: Path) -> None:
    double = SlurmDouble()
    assert Slurm(None, double).look(wanted(words=("mark",))).jobs == {}
    assert double.programs() == ["squeue"]


def test_jobs_are_found_by_their_token_and_others_left_out() -> None:
    mine = queue_line("7_0", "RUNNING", start=NOW, name=f"{TOKEN}-train")
    commented = queue_line("8", "PENDING", comment=f"fl-00 train {'a' * 12}")
    others = [queue_line("9", "RUNNING", name="x"), queue_line("10", "RUNNING", user=77)]
    double = SlurmDouble([mine, commented, *others], [account_line("7_0", "RUNNING", start=NOW, elapsed_s=5, gpus=1)])
    look = Slurm(None, double).look(wanted(words=("a" * 12,), lost=(TOKEN,)))
    assert set(look.jobs) == {"7_0", "8"}
    assert look.jobs["7_0"].attempts[0].num_gpus == 1
    assert "--jobs=7,8" in double.calls[1]
    assert look.num_queued == (3 if os.getuid() == 0 else 0)


def test_a_token_that_is_not_in_the_queue_is_searched_in_the_accounts() -> None:
    double = SlurmDouble(
        [], [account_line("7", "COMPLETED", start=NOW, name=f"{TOKEN}-train"), account_line("8", "FAILED")]
    )
    look = Slurm(None, double).look(wanted("6", lost=(TOKEN,)))
    assert set(look.jobs) == {"7"}
    assert any(option.startswith("--starttime=") for option in double.calls[1])
    assert not any(option.startswith("--jobs=") for option in double.calls[1])


def test_without_accounting_the_queue_alone_has_to_do() -> None:
    double = SlurmDouble([queue_line("7", "RUNNING", start=NOW)], accounts=None)
    look = Slurm(None, double).look(wanted("7"))
    assert look.jobs["7"].words == "running"
    assert not look.has_accounts
    assert look.notes == ("no accounting: sacct: Slurm accounting storage is disabled",)


def test_without_a_queue_it_is_said_so() -> None:
    look = Slurm(None, SlurmDouble(is_reachable=False)).look(wanted("7"))
    assert not look.has_queue
    assert "Unable to contact slurm controller" in look.notes[0]
    absent = Slurm(None, SlurmDouble(is_installed=False)).look(wanted("7"))
    assert absent.notes[0] == "the queue cannot be seen: there is no squeue here"
    assert (absent.has_queue, absent.has_accounts, absent.jobs) == (False, False, {})


def test_what_has_ended_counts_as_cancelled_and_any_other_refusal_is_told() -> None:
    double = SlurmDouble(refusals="scancel: error: Kill job error on job id 7: Invalid job id specified\n")
    Slurm(None, double).cancel(["7", "8_1", "8_2"])
    assert double.calls == [["scancel", "7", "8_[1-2]"]]
    double.refusals = "scancel: error: Kill job error on job id 7: Access/permission denied\n"
    with pytest.raises(NoAnswer, match="permission denied"):
        Slurm(None, double).cancel(["7"])


def test_sbatch_answers_with_an_id_and_its_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path, "sbatch", """[ "$*" = "--parsable /a b/job.sh" ] && echo '4242;jean-zay'""")
    assert Slurm().sbatch(Path("/a b/job.sh")) == "4242"
    program(tmp_path, "sbatch", "echo 'sbatch: error: invalid account' >&2; exit 1")
    with pytest.raises(NoAnswer, match="sbatch: error: invalid account"):
        Slurm().sbatch(Path("job.sh"))
    program(tmp_path, "sbatch", "echo queued, probably")
    with pytest.raises(NoAnswer, match="where a job id was expected"):
        Slurm().sbatch(Path("job.sh"))


def test_requeueing_twice_is_no_mistake() -> None:
    double = SlurmDouble(refusals="Job is pending execution for job 7\n")
    Slurm(None, double).requeue("7")
    assert double.calls == [["scontrol", "requeue", "7"]]
    double.refusals = "Requested operation is presently disabled for job 7\n"
    with pytest.raises(NoAnswer, match="presently disabled"):
        Slurm(None, double).requeue("7")


def test_the_settings_of_slurm_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "scontrol", "printf 'Configuration data as of x\\nMaxArraySize            = 1001\\nA = b = c\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = Slurm().config()
    assert (config["MaxArraySize"], config["A"]) == ("1001", "b = c")


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_commands_get_their_arguments_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "scancel", f'for word in "$@"; do printf "%s\\0" "$word"; done > {tmp_path}/said')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    hostile = ["; touch /tmp/x", "$(id)", "a\nb", '"', "--help"]
    run_command(["scancel", *hostile], 10)
    assert (tmp_path / "said").read_text().split("\0")[:-1] == hostile


def test_the_habits_of_a_user_do_not_change_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "squeue", 'echo "$SQUEUE_FORMAT|$SLURM_TIME_FORMAT|$SLURM_BITSTR_LEN|$SLURM_CONF"')
    for name, value in (("SQUEUE_FORMAT", "%i"), ("SLURM_TIME_FORMAT", "relative"), ("SLURM_CONF", "/etc/x")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run_command(["squeue"], 10).out == "|%s|0|/etc/x\n"


def test_a_command_that_hangs_or_is_missing_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "squeue", "exec sleep 20")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(NoAnswer, match="squeue did not answer within 0 s"):
        run_command(["squeue"], 0.3)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoAnswer, match="there is no sacct here"):
        run_command(["sacct"], 1)


def test_nothing_is_known_before_anything_was_asked() -> None:
    assert Look().jobs == {}
    assert not JobState("7", "COMPLETED").is_live


def test_sbatch_sees_no_option_of_the_shell_or_of_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "sbatch", f"env > '{tmp_path}/seen'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    others = {"SBATCH_ACCOUNT": "other", "SLURM_MEM_PER_CPU": "1", "SLURM_CONF": "/etc/slurm.conf"}
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    run_command(["sbatch", "--parsable"], 10)
    seen = {line.partition("=")[0] for line in (tmp_path / "seen").read_text().splitlines()}
    assert seen & set(others) == {"SLURM_CONF"}
