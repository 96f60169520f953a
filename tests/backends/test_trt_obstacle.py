"""What keeps an installed TensorRT from running is found, and one command mends it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from precisionlab.backends.tensorrt import obstacle
from precisionlab.backends.tensorrt.builds import Build, builds_among, installed_builds
from precisionlab.backends.tensorrt.obstacle import install_command, obstacle_of
from precisionlab.backends.tensorrt.presence import Presence

CU12 = Build(12, ("tensorrt-cu12", "tensorrt-cu12-bindings", "tensorrt-cu12-libs"))
CU13 = Build(13, ("tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu13-libs"))
WELL = Presence("tensorrt", version="10.16.1.11", cuda_python=12090, driver=12080, gpus=1, builds=(CU12,))
INTO_12 = f'pip uninstall -y tensorrt {" ".join(CU13.packages)} && pip install "precisionlab[tensorrt-cu12]"'


@pytest.fixture(autouse=True)
def no_jetson(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(obstacle, "_JETSON", tmp_path / "nv_tegra_release")


@pytest.mark.parametrize(
    "seen",
    [
        WELL,
        replace(WELL, driver=12020),  # of the same major version: CUDA's minor versions go together
        replace(WELL, builds=(), cuda_python=13000, driver=13000),  # packages that do not name their CUDA
        replace(WELL, builds=(CU13,), cuda_python=13010, driver=13000),
        replace(WELL, builds=(Build(12),), driver=12060),  # JetPack 6
    ],
)
def test_what_fits_together_has_nothing_in_its_way(seen: Presence) -> None:
    assert obstacle_of(seen) is None


@pytest.mark.parametrize(
    ("seen", "why", "remedy"),
    [
        (replace(WELL, cuda_python=None, gpus=0), "cuda-python is not installed", 'pip install "cuda-python>=12,<13"'),
        (
            replace(WELL, cuda_python=None, gpus=0, builds=(), driver=13000),
            "cuda-python is not installed",
            'pip install "cuda-python>=13,<14"',
        ),
        (
            replace(WELL, cuda_python=13010, gpus=0),
            "this cuda-python is for CUDA 13",
            'pip install "cuda-python>=12,<13"',
        ),
        (
            replace(WELL, builds=(), cuda_python=13010, gpus=0),
            "the NVIDIA driver can do CUDA 12.8, and this cuda-python is for CUDA 13",
            'pip install "cuda-python>=12,<13"',
        ),
        (replace(WELL, builds=(CU13,)), "can do CUDA 12.8, and this TensorRT is for CUDA 13", INTO_12),
        (replace(WELL, builds=(CU13,), cuda_python=None, gpus=0), "this TensorRT is for CUDA 13", INTO_12),
        (replace(WELL, builds=(CU13,), cuda_python=13010, gpus=0), "this TensorRT is for CUDA 13", INTO_12),
        (replace(WELL, driver=11040, gpus=0), "the NVIDIA driver can do CUDA 11.4", "update the NVIDIA driver"),
        (
            replace(WELL, version=None, broken="libnvinfer.so.10: cannot open shared object file"),
            "cannot be loaded (libnvinfer.so.10: cannot open shared object file)",
            f'pip uninstall -y tensorrt {" ".join(CU12.packages)} && pip install "precisionlab[tensorrt-cu12]"',
        ),
        (
            replace(WELL, version=None, broken="undefined symbol", builds=(), driver=13000),
            "cannot be loaded (undefined symbol)",
            'pip install "precisionlab[tensorrt-cu13]"',
        ),
        (
            replace(WELL, version=None, broken="undefined symbol", builds=(CU12, CU13)),
            "for CUDA 12 and 13, and one overwrites the other's files",
            f"pip uninstall -y tensorrt {' '.join(CU12.packages + CU13.packages)} && pip install",
        ),
        (replace(WELL, cuda_python=None, cuda_broken="no _cyutility"), "no _cyutility", "--force-reinstall"),
        (replace(WELL, driver=None, gpus=0), "no NVIDIA driver is here", "nvidia-smi"),
        (replace(WELL, gpus=0), "no NVIDIA GPU can be seen", "nvidia-smi"),
    ],
)
def test_what_keeps_engines_from_running_is_named_with_the_command_that_mends_it(
    seen: Presence, why: str, remedy: str
) -> None:
    for serious in (False, True):
        found = obstacle_of(seen, serious=serious)
        assert found is not None
        assert not found.is_harmless
        assert why in found.why
        assert found.remedy.startswith(remedy) or found.remedy.endswith(remedy)


@pytest.mark.parametrize(
    ("seen", "why", "remedy"),
    [
        (
            replace(WELL, cuda_python=13010, driver=13000),
            "this TensorRT is for CUDA 12, and this cuda-python for CUDA 13",
            'pip install "cuda-python>=12,<13"',
        ),
        (
            replace(WELL, builds=(CU12, CU13), driver=13000),
            "for CUDA 12 and 13",
            f"pip uninstall -y tensorrt {' '.join(CU12.packages + CU13.packages)} && "
            'pip install "precisionlab[tensorrt-cu13]"',
        ),
    ],
)
def test_what_may_run_all_the_same_is_told_and_does_not_count_as_serious(seen: Presence, why: str, remedy: str) -> None:
    found = obstacle_of(seen)
    assert found is not None
    assert found.is_harmless
    assert why in found.why
    assert found.remedy == remedy
    assert obstacle_of(seen, serious=True) is None


@pytest.mark.parametrize(
    ("driver", "extra"), [(None, "cu13"), (12020, "cu12"), (12090, "cu12"), (13000, "cu13"), (14010, "cu13")]
)
def test_what_is_installed_is_what_the_driver_can_do(driver: int | None, extra: str) -> None:
    assert install_command("tensorrt", driver) == f'pip install "precisionlab[tensorrt-{extra}]"'
    assert install_command("tensorrt_rtx", driver).endswith(f'pip install --no-build-isolation "tensorrt-rtx-{extra}"')


def test_on_a_jetson_tensorrt_is_jetpacks_own(tmp_path: Path) -> None:
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.0")
    assert "--system-site-packages" in install_command("tensorrt", 12060)
    assert 'pip install "precisionlab[jetson]"' in install_command("tensorrt", 12060)
    assert "jetson" not in install_command("tensorrt_rtx", 12060)


class TestBuilds:
    def test_the_packages_of_each_cuda_are_found_whatever_way_their_names_are_written(self) -> None:
        names = ["numpy", "tensorrt", "tensorrt_cu12", "Tensorrt-CU12.libs", "tensorrt_cu12_bindings"]
        assert builds_among("tensorrt", names) == (CU12,)
        assert builds_among("tensorrt", [*names, *CU13.packages]) == (CU12, CU13)
        assert builds_among("tensorrt_rtx", names) == ()

    def test_tensorrt_rtx_and_others_of_a_like_name_are_none_of_it(self) -> None:
        names = ["tensorrt-rtx-cu13", "tensorrt-rtx-cu13-libs", "tensorrt-lean-cu12", "tensorrt-cu12-extra", "tensorrt"]
        assert builds_among("tensorrt", names) == ()
        assert builds_among("tensorrt_rtx", names) == (Build(13, ("tensorrt-rtx-cu13", "tensorrt-rtx-cu13-libs")),)

    @pytest.mark.skipif(os.name == "nt", reason="there is no Debian on Windows")
    @pytest.mark.parametrize(
        ("lines", "builds"),
        [
            ("libnvinfer10 10.3.0.30-1+cuda12.5\nlibnvinfer-bin 10.3.0.30-1+cuda12.5\n", (Build(12),)),
            ("libnvinfer8 8.6.2.3-1+cuda12.2\n", (Build(12),)),
            ("libnvinfer10 10.13.3.9-1+cuda13.0\nlibnvinfer-dev \n", (Build(13),)),
            ("libnvinfer8 8.5.2-1+cuda11.4\nlibnvinfer10 10.3.0.30-1+cuda12.5\n", ()),  # which one Python loads?
            ("", ()),
        ],
    )
    def test_jetpacks_packages_are_asked_where_pythons_say_nothing(
        self, lines: str, builds: tuple[Build, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        query = tmp_path / "dpkg-query"
        query.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
        query.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setattr("precisionlab.backends.tensorrt.builds._names", list)
        assert installed_builds("tensorrt") == builds
        assert installed_builds("tensorrt_rtx") == ()
