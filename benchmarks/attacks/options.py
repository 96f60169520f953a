"""Options out of range, misspelt, or of another kind."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.attacks.attempt import ANY, DATA, MODEL, REFUSED, RUNS, SWEEP, Attempt, Kind, words

FEW = ("sweep", MODEL, "--data", DATA, "--precisions", "fp16", "--samples", "4", "--threads", "1", "--out", "run")
BAD: dict[str, Sequence[str]] = {
    "--threads": ("3000000000", "-1", "0", "x", "1e3", "99999999999999999999"),
    "--memory": ("10M", "0", "-1G", "x", "nan", "1e999", "4 GB of it", ""),
    "--budget": ("", "soon", "-3", "1d", "nan", "1e999h", "∞"),
    "--tolerance": ("", "sqnr", "sqnr>=x", "sqnr>=nan", "pwned>=3", "sqnr=30", "sqnr[]>=3", "sqnr>=1e999"),
    "--samples": ("0", "-1", "x", "1.5"),
    "--seed": ("-1", "x", "1e3"),
    "--holdout": ("150%", "1.5", "-1", "x", "nan", "inf", ""),
    "--precisions": ("", "fp8", "fp16,,fp16", ",", "fp16;int8", "fp32"),
    "--target": ("v100", "", "../t4"),
    "--ladder": ("", "fp8", "int8,int8", ","),
    "--minimize": ("nothing", ""),
    "--spend": ("x", "-5%", "nan", "inf"),
    "--max-cost": ("x", "-1", "nan", "0"),
    "--max-pins": ("-1", "x"),
    "--max-evaluations": ("-1", "0", "x"),
    "--around": ("int8", "fp8", ""),
    "--calibration": ("best", ""),
    "--backend": ("cpu", "", "tensorrt"),
    "--layers": ("all", ""),
    "--processes": ("0", "-1", "3000000000", "x"),
    "--dask": ("", "nowhere", "tcp://127.0.0.1:1"),
    "--device": ("gpu", "cuda:-1", "cuda:x", "cuda:99", ""),
    "--metric": ("mine", "os:remove", "nowhere.py:f", "x:y:z", ":", "", "precisionlab.cli:cli"),
    "--shapes": ("x", "x:1", "image:1,2", "image:1x2,1x2,1x2", "pwned:1x1,1x1,1x1"),
    "--shape": ("x", "image:0x0", "image:axb"),
    "--plan": ("", "/dev/null", "/dev/zero", "nowhere.json"),
    "--data": ("", "nowhere", "/dev/null", "os:getcwd", "x:y", "nowhere.py:f"),
    "--out": ("/dev/null", "/dev/null/run", "/proc/none", "a\nb/../../outside/secret"),
    "--pwned": ("1",),
}  # fmt: skip
CALIBRATE = ("calibrate", MODEL, "--data", DATA, "--samples", "4", "--threads", "1", "--out", "run")
OTHERS: dict[str, Sequence[object]] = {
    "calibrate --method nothing": (*CALIBRATE, "--method", "nothing"),
    "calibrate --percentile 200": (*CALIBRATE, "--method", "percentile", "--percentile", "200"),
    "calibrate --percentile nan": (*CALIBRATE, "--method", "percentile", "--percentile", "nan"),
    "calibrate --shard 3/2": (*CALIBRATE, "--shard", "3/2"),
    "calibrate --shard x": (*CALIBRATE, "--shard", "x"),
    "calibrate --shard 1/1000000000": (*CALIBRATE, "--shard", "1/1000000000"),
    "calibrate --tensorrt 99": (*CALIBRATE, "--tensorrt", "99"),
    "calibrate --tensorrt x": (*CALIBRATE, "--tensorrt", "x"),
    "calibrate --merge nowhere": (*CALIBRATE, "--merge", "nowhere"),
    "fidelity --against cpu": ("fidelity", MODEL, "--data", DATA, "--against", "cpu"),
    "fidelity on no GPU": ("fidelity", MODEL, "--data", DATA, "--samples", "2", "--out", "run"),
    "export of nothing": ("export", "nowhere.json", "--format", "json"),
    "export as nothing": ("export", "nowhere.json", "--format", "pwned"),
    "report of nothing": ("report", "nowhere"),
    "report of a file": ("report", MODEL),
    "diff of nothing": ("diff", "nowhere", "nowhere"),
    "diff --fail-if x": ("diff", "run", "run", "--fail-if", "x"),
    "no such command": ("pwned",),
    "no model": ("sweep",),
    "a folder for a model": ("sweep", "."),
    "data for a model": ("sweep", DATA / "dataset.toml"),
    "a name of 5000 letters": ("sweep", "m" * 5000),
    "a control character in a name": ("sweep", "\x1b[2Jpwned"),
    "bytes that are no text in a name": ("sweep", "\udcff.onnx"),
}
HARMLESS = ("diff --fail-if x", "calibrate --shard 1/1000000000")
TWINS: dict[str, Sequence[object]] = {
    "sweep": FEW,
    "calibrate": (*CALIBRATE, "--method", "percentile", "--percentile", "99.9"),
    "a budget": (*FEW, "--budget", "1h30m", "--memory", "4G", "--holdout", "25%"),
    "bounds": (*FEW, "--tolerance", "sqnr>=20", "--tolerance", "top1>=0.5", "--max-pins", "3", "--ladder", "fp32"),
    "help": ("--help",),
    "version": ("--version",),
    "doctor": ("doctor",),
}


def kinds(dice: random.Random) -> Iterable[Kind]:
    """The attempts of this family."""
    yield Kind(
        "options of a sweep",
        "each out of range, misspelt, empty, of another kind, NaN, beyond int64",
        "refused; a few have a meaning, and run",
        list(of_a_sweep()),
    )
    yield Kind(
        "other commands",
        "shards, methods, versions, folders and names that are none",
        "refused with a sentence",
        [Attempt(name, words(*parts), ANY if name in HARMLESS else REFUSED) for name, parts in OTHERS.items()],
    )
    yield Kind(
        "pairs of options drawn", "two options of a sweep, sound or not", "figures, or refused", list(pairs(dice))
    )


def of_a_sweep() -> Iterator[Attempt]:
    """One bad value after the other."""
    for name, parts in TWINS.items():
        yield Attempt(f"twin of {name}", words(*parts), RUNS, twin=True)
    for option, odds in BAD.items():
        for odd in odds:
            yield Attempt(f"{option} {odd!r}", words(*FEW, option, odd), ANY)


def pairs(dice: random.Random) -> Iterator[Attempt]:
    """Two at a time, with values that may be sound by themselves."""
    sound = {"--minimize": "cost", "--spend": "5%", "--ladder": "fp16,fp32", "--holdout": "0.5", "--around": "fp16"}
    for _ in range(12):
        found = [(option, dice.choice(BAD[option])) for option in dice.sample([*BAD], 2)]
        if dice.random() < 0.5:
            found[0] = dice.choice([*sound.items()])
        flat = [part for pair in found for part in pair]
        yield Attempt(" ".join(flat), words(*SWEEP, *flat), ANY, run="--out" not in flat)
