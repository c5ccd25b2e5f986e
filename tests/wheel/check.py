"""Makes a wheel of this tree and one of its sdist, as a machine without nvcc would, and tries each.

    python tests/wheel/check.py --python /usr/bin/python3

The stage `wheel` of scripts/test. Run with an interpreter that has scikit-build-core, nanobind, CMake and
Ninja; `--python` is the one whose bare environments the wheels are installed into. Both builds keep their
objects, in build/ and build/wheel/cmake.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from scikit_build_core.build import build_sdist

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "wheel"
PIP = ("-m", "pip", "--disable-pip-version-check", "-q")
NVCC_RELEASE_MIN = 13


def run(*command: str | Path) -> None:
    """Runs from the repository root; its failure is ours."""
    subprocess.run(command, cwd=ROOT, check=True)


def unpack(sdist: Path, folder: Path) -> None:
    """Makes `folder` hold what `sdist` holds and nothing else; what is as before stays as old as it is."""
    kept = set()
    with tarfile.open(sdist) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None:
                continue
            path = folder.joinpath(*Path(member.name).parts[1:])
            data = content.read()
            kept.add(path)
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(member.mode)
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in kept]:
        path.unlink()


def make(into: Path, source: Path, *settings: str) -> Path:
    """One wheel of a folder."""
    options = [word for setting in settings for word in ("-C", setting)]
    run(sys.executable, *PIP, "wheel", "--no-build-isolation", "--no-deps", "-w", into, *options, source)
    (made,) = into.glob("*.whl")
    return made


def kernels_expected() -> bool:
    """Whether the build of this machine finds an nvcc that compiles the copy kernels."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return False
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", told)
    return release is not None and int(release[1]) >= NVCC_RELEASE_MIN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="whose environments the wheels go into")
    options = parser.parse_args()
    made, bare = FOLDER / "made", FOLDER / "bare"
    shutil.rmtree(made, ignore_errors=True)
    of_tree = make(made / "tree", ROOT)
    unpack(made / build_sdist(str(made)), FOLDER / "source")
    settings = (f"build-dir={FOLDER / 'cmake'}", "cmake.define.SUPERINFER_NVCC=")
    of_sdist = make(made / "sdist", FOLDER / "source", *settings)
    run(options.python, "-m", "venv", "--clear", bare)
    python = bare / "bin" / "python"
    run(python, *PIP, "install", of_tree)
    run(python, "-I", "tests/wheel/smoke.py", "--kernels", "yes" if kernels_expected() else "no")
    run(python, *PIP, "install", "--force-reinstall", "--no-deps", of_sdist)
    run(python, "-I", "tests/wheel/smoke.py", "--kernels", "no")


if __name__ == "__main__":
    main()
