"""The doors under atheris, which looks for inputs that reach new code. Not a test: `pip install atheris` and

    python tests/wire/atheris_mapping.py -runs=1000000 CORPUS_FOLDER

It starts from the corpus of test_fuzz_doors.py, and stops at the first input that does what none may do; that
input belongs into `FOUND` there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
with atheris.instrument_imports(include=["superinfer_trt", "support.fuzzed"]):
    from support.fuzzed import Judge
    from support.fuzzed_seeds import seeds


def main() -> None:
    folders = [Path(one) for one in sys.argv[1:] if not one.startswith("-")]
    if folders:
        folders[0].mkdir(parents=True, exist_ok=True)
        for at, seed in enumerate(seeds()):
            (folders[0] / f"seed{at}").write_bytes(seed)
    judge = Judge()
    atheris.Setup(sys.argv, lambda data: (judge(data), None)[1])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
