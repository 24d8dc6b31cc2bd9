"""The runner: crashes, hangs, other sweeps, ctrl-C, GPUs, and jobs of a cluster."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from sweep_fakes import Notes, calls, planned, worker

from residcheck.errors import ResidcheckError, UsageError
from residcheck.sweep.cluster import Jobs, named, read_options
from residcheck.sweep.gpus import Slot, slots, visible
from residcheck.sweep.runner import Here, run
from residcheck.sweep.store import Entry, Status


def status(entry: Entry) -> Status:
    found = entry.status
    assert found is not None
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_model_that_crashes_or_hangs_harms_no_other(tmp_path: Path) -> None:
    names = ("segfaults", "hangs", "killed", "exits", "fails", "good")
    found = planned(tmp_path, *names)
    notes = Notes()
    run(found, Here([Slot(), Slot()], 3.0, worker(tmp_path)), notes)
    said = {entry.text: status(entry) for entry in found}
    assert sorted(notes.ended_) == sorted(names)
    assert said["segfaults"].message == "the process was ended by SIGSEGV"
    assert "SIGKILL, as the system does where memory runs out" in said["killed"].message
    assert said["exits"].message == "the process ended with exit status 7"
    assert said["exits"].hint.endswith("log.txt, which ends in: at work")
    assert said["hangs"].message == "not done after 0.05 minutes, and ended"
    assert said["fails"].message == "it is <bad>"
    assert [n for n, s in said.items() if s.state == "finished"] == ["good"]


def test_what_is_finished_is_kept_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    found = planned(tmp_path, "good", "fails")
    here = Here([Slot()], 30.0, worker(tmp_path))
    run(found, here, Notes())
    assert [entry.state for entry in found] == ["finished", "failed before"]
    notes = Notes()
    run(found, here, notes)
    assert notes.began_ == ["fails"]
    assert [name for name, *_ in calls(tmp_path)] == ["good", "fails", "fails"]


def test_a_finished_model_whose_files_are_gone_is_measured_again(tmp_path: Path) -> None:
    (entry,) = planned(tmp_path, "good")
    here = Here([Slot()], 30.0, worker(tmp_path))
    run([entry], here, Notes())
    entry.run.unlink()
    assert entry.state == "to do"
    run([entry], here, Notes())
    assert entry.finished
    assert len(calls(tmp_path)) == 2


def test_two_sweeps_share_the_models(tmp_path: Path) -> None:
    found = planned(tmp_path, *(f"slow-{n}" for n in range(5)))
    both = [Notes(), Notes()]
    sweeps = [
        threading.Thread(
            target=run, args=(order, Here([Slot()], 30.0, worker(tmp_path)), notes), daemon=True
        )
        for notes, order in zip(both, (found, found[::-1]), strict=True)
    ]
    for sweep in sweeps:
        sweep.start()
    for sweep in sweeps:
        sweep.join(60)
        assert not sweep.is_alive()
    assert sorted(name for name, *_ in calls(tmp_path)) == sorted(e.text for e in found)
    for notes in both:
        assert sorted(notes.ended_) == sorted(entry.text for entry in found)
    assert all(entry.finished for entry in found)


def test_what_another_sweep_has_is_waited_for_and_taken_if_given_up(tmp_path: Path) -> None:
    (entry,) = planned(tmp_path, "good")
    notes = Notes()
    sweep = threading.Thread(
        target=run, args=([entry], Here([Slot()], 30.0, worker(tmp_path)), notes), daemon=True
    )
    with entry.locked():
        sweep.start()
        deadline = time.monotonic() + 10
        while not notes.waited and time.monotonic() < deadline:
            time.sleep(0.05)
        assert notes.waited == ["good"]
        assert entry.status is None
    sweep.join(30)
    assert entry.finished


def test_ctrl_c_ends_what_runs_and_keeps_what_is_finished(tmp_path: Path) -> None:
    found = planned(tmp_path, "good", "hangs-1", "hangs-2", "good-2")
    here = Here([Slot(), Slot()], 60.0, worker(tmp_path))

    class Late(Notes):
        def began(self, entry: Entry) -> None:
            super().began(entry)
            deadline = time.monotonic() + 20
            while len(self.began_) == 3 and len(calls(tmp_path)) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            if len(self.began_) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(found, here, Late())
    assert [entry.finished for entry in found] == [True, False, False, False]
    assert found[1].status is None
    assert not any(alive(int(pid)) for _, _, pid in calls(tmp_path))


def test_gpus_are_those_that_the_process_may_use() -> None:
    assert visible({}, 3) == ["0", "1", "2"]
    assert visible({"CUDA_VISIBLE_DEVICES": "5, 2"}, 2) == ["5", "2"]
    assert visible({"CUDA_VISIBLE_DEVICES": "GPU-ab,MIG-cd"}, 2) == ["GPU-ab", "MIG-cd"]
    assert visible({"CUDA_VISIBLE_DEVICES": "3,-1,4"}, 1) == ["3"]
    assert visible({"CUDA_VISIBLE_DEVICES": ""}, 0) == []


def test_every_process_has_its_own_gpu() -> None:
    assert slots(None, ["cuda", "cpu"], ["5", "2"]) == [Slot("5"), Slot("2")]
    assert slots(1, ["cuda"], ["5", "2"]) == [Slot("5")]
    assert slots(3, ["cuda"], ["5", "2"]) == [Slot("5"), Slot("2"), Slot("5")]
    assert slots(None, ["cpu", "cuda:1"], []) == [Slot()]
    assert slots(4, ["cpu"], []) == [Slot()] * 4
    assert Slot("5").variables("cuda") == {"CUDA_VISIBLE_DEVICES": "5"}
    assert Slot("5").variables("cuda:1") == Slot("5").variables("cpu") == {}


def test_workers_see_the_gpu_of_their_slot(tmp_path: Path) -> None:
    found = planned(tmp_path, *(f"slow-{n}" for n in range(4)), device="cuda")
    run(found, Here(slots(None, ["cuda"], ["5", "2"]), 30.0, worker(tmp_path)), Notes())
    assert {gpu for _, gpu, _ in calls(tmp_path)} == {"5", "2"}


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert Here([Slot()], 1.0)._threads() == {}
    assert Here([Slot()] * 3, 1.0)._threads() == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Here([Slot()] * 3, 1.0)._threads() == {}


@pytest.fixture
def _submitit() -> None:
    pytest.importorskip("submitit")


@pytest.mark.usefixtures("_submitit")
def test_jobs_of_this_machine(tmp_path: Path) -> None:
    found = planned(tmp_path, "good", "segfaults", "fails")
    jobs = Jobs("local", tmp_path / "cluster", 30.0, {}, 3, worker(tmp_path))
    run(found, jobs, Notes())
    assert [status(entry).state for entry in found] == ["finished", "failed", "failed"]
    assert status(found[1]).message == "the process was ended by SIGSEGV"


@pytest.mark.usefixtures("_submitit")
def test_jobs_that_are_interrupted_are_cancelled(tmp_path: Path) -> None:
    (entry,) = found = planned(tmp_path, "hangs")

    class Late(Notes):
        def began(self, entry: Entry) -> None:
            deadline = time.monotonic() + 30
            while not calls(tmp_path):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(found, Jobs("local", tmp_path / "cluster", 60.0, {}, 1, worker(tmp_path)), Late())
    deadline = time.monotonic() + 20
    while alive(int(calls(tmp_path)[0][2])):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert entry.state == "to do"


# Stands for SLURM: runs the tasks of an array at once, and knows how they ended.
_SBATCH = """#!/bin/bash
cp "$1" "$SLURM_FAKE/submission.sh"
array=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")
ids=${array:+$(seq -f '17_%g' 0 $array)}
export SLURM_JOB_ID=17 SLURM_JOB_NODELIST=node1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
for id in ${ids:-17}; do
  [ $id = 17 ] || export SLURM_ARRAY_JOB_ID=17 SLURM_ARRAY_TASK_ID=${id#17_}
  bash "$SLURM_FAKE/task" $id > "$SLURM_FAKE/$id.log" 2>&1 &
done
echo "Submitted batch job 17"
"""
_TASK = """
[ $1 = "$SLURM_LOSES" ] && state=OUT_OF_MEMORY || state=COMPLETED
[ $state = COMPLETED ] && bash "$SLURM_FAKE/submission.sh"
echo "$1|$state|node1" >> "$SLURM_FAKE/states"
"""
_SRUN = """#!/bin/bash
while [ "${1#-}" != "$1" ]; do case $1 in --output|--error) shift;; esac; shift; done
exec "$@"
"""
_SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
cat "$SLURM_FAKE/states" 2> /dev/null
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _submitit: None) -> Path:
    """The folder of a SLURM that is none."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (
        ("sbatch", _SBATCH),
        ("task", _TASK),
        ("srun", _SRUN),
        ("sacct", _SACCT),
        ("scancel", "#!/bin/sh\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_FAKE", str(folder))
    monkeypatch.setenv("SLURM_LOSES", "17_2")
    return folder


def test_an_array_of_slurm_jobs(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = planned(tmp_path, "good", "segfaults", "lost")
    options = read_options(("partition=gpu", "time=60", "mem_gb=32", "gpus_per_node=1"))
    jobs = Jobs("slurm", tmp_path / "cluster", 30.0, options, 2, worker(tmp_path))
    # once a minute submitit asks for the state of a job that left no result
    monkeypatch.setattr("submitit.slurm.slurm.SlurmJob.watcher._delay_s", 0.5)
    monkeypatch.setattr("residcheck.sweep.cluster.SECONDS_TO_APPEAR", 0.5)
    run(found, jobs, Notes())
    assert [status(entry).state for entry in found] == ["finished", "failed", "failed"]
    assert status(found[1]).message == "the process was ended by SIGSEGV"
    assert "slurm job 17_2 ended as OUT_OF_MEMORY" in status(found[2]).message
    submitted = (slurm / "submission.sh").read_text()
    for wanted in ("array=0-2%2", "partition=gpu", "time=60", "mem=32GB", "gpus-per-node=1"):
        assert f"#SBATCH --{wanted}" in submitted


def test_slurm_that_takes_no_jobs_says_why(slurm: Path, tmp_path: Path) -> None:
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2\nexit 1")
    jobs = Jobs("slurm", tmp_path / "cluster", 30.0, {}, None, worker(tmp_path))
    with pytest.raises(ResidcheckError, match=r"slurm does not take the jobs: .*invalid partition"):
        run(planned(tmp_path, "good", "good-2"), jobs, Notes())


def test_without_slurm_or_submitit_the_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if pytest.importorskip("submitit"):
        with pytest.raises(UsageError, match="srun"):
            Jobs("slurm", tmp_path / "cluster", 30.0, {})
    monkeypatch.setattr("residcheck.sweep.cluster.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs submitit") as raised:
        Jobs("slurm", tmp_path / "cluster", 30.0, {})
    assert raised.value.hint == "pip install 'residcheck[cluster]'"


def test_options_of_slurm_are_read_and_refused(slurm: Path, tmp_path: Path) -> None:
    given = read_options(("partition=gpu", "exclusive=true", "mem_gb=1.5", "gpus_per_node=2"))
    assert named(given) == {
        "slurm_partition": "gpu",
        "slurm_exclusive": True,
        "mem_gb": 1.5,
        "gpus_per_node": 2,
    }
    for wrong in ("partition", "=gpu", "partition=", "time=2:00:00"):
        with pytest.raises(UsageError, match="--slurm-option"):
            read_options((wrong,))
    with pytest.raises(UsageError, match="partitoin"):
        Jobs("slurm", tmp_path / "cluster", 30.0, {"partitoin": "gpu"})
