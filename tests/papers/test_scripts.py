"""The scripts run end to end on small trees, are killed and go on, and run in two processes."""

import contextlib
import functools
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import timm
import torch
import trees
from torchvision.models import googlenet

PAPERS = Path(__file__).parents[2] / "examples" / "papers"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:a map is uniform")]


@dataclass(frozen=True)
class Case:
    """A script on a small tree: what is asked for, of one process and to compare one with two.

    ``saved`` is a file that is there when the script is in the middle of its work, ``rows`` how many it makes.
    """

    arguments: str
    shared: str
    saved: str
    rows: int
    lines: tuple[str, ...]


CASES = {
    "svmax": Case(
        "--data cub --steps 4 --only contrastive SVMax 0.01 0.001 --precision bf16",
        "--data cub --steps 4 --only SVMax 0.01 --precision float32",
        "contrastive_SVMax_0.001.pt",
        2,
        ("contrastive, SVMax, 0.01 ", "contrastive, SVMax, 0.001 ", "R@1", "NMI", "--steps is 4, published is 5000"),
    ),
    "two_head": Case(
        "--data aircraft --steps 4 --precision float32",
        "--data aircraft --steps 4 --precision float32",
        "two_heads_semi-hard.pt",
        4,
        ("cross-entropy, shuffled ", "cross-entropy, P x K ", "two heads, semi-hard ", "two heads, hard ", "accuracy"),
    ),
    "knowledge_evolution": Case(
        "--data csv --epochs 1 --precision float32",
        "--data csv --epochs 1 --precision float32 --only 'KELS 0.5' 'one long training'",
        "KELS_0.5.pt",
        12,
        ("KELS 0.5, generation 5 ", "one long training ", "slim size, alone ", "later layers, generation 5 "),
    ),
    "l2_caf": Case(
        "--data csv",
        "--data csv --only 'likeliest class' 'as here'",
        "rows.json",
        4,
        ("test_resnet, last layer, whole output, as here ", "points into the box, %", "objective"),
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data sets, and weights of two small networks."""
    root = tmp_path_factory.mktemp("data")
    trees.birds(root / "CUB_200_2011", range(95, 107), each=3)
    trees.aircraft(root)
    for folder, each in (("own", 4), ("few", 1)):
        names = [(part, c, i) for part in ("train", "validation") for c in "ab" for i in range(each)]
        rows = [f"class {c},images/{c}_{part}_{i}.png,{part},5,25,5,20" for part, c, i in names]
        trees.table(root / folder, rows, "label,path,split,x_1,x_2,y_1,y_2")
    torch.manual_seed(0)
    for name in ("test_resnet", "test_convnext"):
        torch.save(timm.create_model(name).state_dict(), root / f"{name}.pt")
    return root


def command(script, arguments, root, out, network="test_resnet", *, processes=1):
    launch = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    where = root / ("few" if script == "l2_caf" else "own") / "own.csv" if "csv" in arguments else root
    options = ["--root", where, "--other-counts", "--model", network, "--out", out, "--workers", "0"]
    options += [] if script == "knowledge_evolution" else ["--weights", root / f"{network}.pt"]
    options += (
        [] if script == "l2_caf" else ["--batch-size", "12" if script == "svmax" else "8", "--checkpoint-every", "1"]
    )
    words = [sys.executable, *launch, PAPERS / f"{script}.py", *shlex.split(arguments), *options]
    return list(map(str, words))


def environment():
    path = os.pathsep.join(filter(None, [str(PAPERS.parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def launch(*arguments, **options):
    """Run a script in processes of its own, to the end."""
    result = subprocess.run(
        command(*arguments, **options), env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


@pytest.fixture(scope="module")
def run(load):
    """Run a script within this process, which saves its imports; returns what it printed."""

    def run(script, arguments, root, out, network="test_resnet"):
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "argv", command(script, arguments, root, out, network)[1:])
            load(script).main()
        return printed.getvalue()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are killed: other numbers of threads round otherwise
    yield run
    torch.set_num_threads(threads)


def folder_of(out):
    (folder,) = out.iterdir()
    return folder


def rows_of(out):
    """Return the rows without what a clock says."""
    rows = json.loads((folder_of(out) / "rows.json").read_text())["rows"]
    return {name: {m: value for m, value in row.items() if m != "seconds a map"} for name, row in rows.items()}


@pytest.fixture(scope="module")
def finished(run, root, tmp_path_factory):
    """What a script printed, and where its rows are, without an interruption."""

    @functools.cache
    def finish(name):
        out = tmp_path_factory.mktemp(name)
        return run(name, CASES[name].arguments, root, out), out

    return finish


@pytest.mark.parametrize("name", CASES)
def test_a_script_runs_and_prints_its_table(finished, name):
    printed, out = finished(name)
    assert len(rows_of(out)) == CASES[name].rows
    for line in CASES[name].lines:
        assert line in printed
    assert "(published" not in printed


@pytest.mark.parametrize("name", CASES)
def test_a_script_that_was_killed_goes_on_and_ends_to_the_digit_the_same(finished, run, root, tmp_path, name):
    case, (printed, out) = CASES[name], finished(name)
    started = command(name, case.arguments, root, tmp_path)
    with subprocess.Popen(started, env=environment(), stderr=subprocess.DEVNULL) as process:
        wait_for(case.saved, tmp_path, process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("rows.json")) or len(rows_of(tmp_path)) < case.rows
    resumed = run(name, case.arguments, root, tmp_path)
    assert rows_of(tmp_path) == rows_of(out)
    if name != "l2_caf":  # it prints times
        assert resumed == printed


def wait_for(saved, out, process):
    """Wait until a file of a script in the middle of its work is there."""
    for _ in range(6000):
        assert process.poll() is None, "the script ended before it could be killed"
        if list(out.rglob(saved)):
            return
        time.sleep(0.02)
    raise TimeoutError(saved)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(run, root, tmp_path, name):
    """In a network without statistics over a batch, the weights after each run agree, too."""
    outs = [tmp_path / "one", tmp_path / "two"]
    run(name, CASES[name].shared, root, outs[0], "test_convnext")
    launch(name, CASES[name].shared, root, outs[1], "test_convnext", processes=2)
    assert rows_of(outs[0]).keys() == rows_of(outs[1]).keys()
    for path in folder_of(outs[0]).glob("*.pt"):
        one, two = (torch.load(folder_of(out) / path.name, weights_only=True) for out in outs)
        if name == "l2_caf":
            torch.testing.assert_close(one["measures"][:, [0, 2, 3, 4]], two["measures"][:, [0, 2, 3, 4]])
            continue
        assert one["step"] == two["step"]
        for key in one["model"]:
            torch.testing.assert_close(one["model"][key], two["model"][key], rtol=1e-3, atol=1e-4, msg=f"{path} {key}")


def test_two_processes_that_were_killed_go_on(root, tmp_path):
    arguments, outs = CASES["svmax"].shared, [tmp_path / "whole", tmp_path / "killed"]
    launch("svmax", arguments, root, outs[0], processes=2)
    started = command("svmax", arguments, root, outs[1], processes=2)
    with subprocess.Popen(started, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for("N-pairs_SVMax_0.01.pt", outs[1], process)
        os.killpg(process.pid, signal.SIGKILL)
    launch("svmax", arguments, root, outs[1], processes=2)
    assert rows_of(outs[0]) == rows_of(outs[1])


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_predicts_and_leaves_nothing(run, root, tmp_path, name):
    printed = run(name, CASES[name].arguments + " --dry-run", root, tmp_path)
    for line in ("every image can be read", "memory: ", "what is not done yet, "):
        assert line in printed
    assert not list(tmp_path.iterdir())


def test_broken_images_are_listed_by_a_dry_run_and_end_a_training(run, root, tmp_path):
    folder = trees.birds(tmp_path / "CUB_200_2011", range(95, 107))
    (tmp_path / "test_resnet.pt").symlink_to(root / "test_resnet.pt")
    for path in sorted(folder.rglob("*.jpg"))[:2]:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SystemExit, match=r"2 of 48 images are broken\n.*Bird_95_0.jpg cannot be read as an image"):
        run("svmax", "--data cub --dry-run", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"Bird_95_[01].jpg cannot be read as an image .* unpack it again"):
        run("svmax", "--data cub --steps 30 --only vanilla 0.01", tmp_path, tmp_path / "out")


def test_the_best_on_the_test_images_is_reported_on_request(run, load, root, tmp_path, monkeypatch):
    monkeypatch.setattr(load("two_head"), "TEST_EVERY", 2)
    arguments = "--data aircraft --steps 5 --precision float32 --only 'two heads, semi-hard' --select-on-test"
    printed = run("two_head", arguments, root, tmp_path)
    rows = rows_of(tmp_path)
    assert list(rows) == [f"two heads, semi-hard, step {step}" for step in (2, 4, 5)]
    assert f"two heads, semi-hard  {max(row['accuracy'] for row in rows.values()):.4g}" in printed


def test_googlenet(run, root, tmp_path):
    torch.save(googlenet(init_weights=False).state_dict(), root / "googlenet.pt")
    run("svmax", "--data cub --steps 1 --only vanilla contrastive 0.01", root, tmp_path / "svmax", "googlenet")
    run("l2_caf", "--data csv --only inception5b 'as here'", root, tmp_path / "l2_caf", "googlenet")
    assert len(rows_of(tmp_path / "l2_caf")) == 2
