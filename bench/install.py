"""How large an installation is: the wheels that pip fetches, by extra, and what safetykit's own is made of.

    python bench/install.py -o OUT [--extra cpu …]

Wheels are those of this machine's platform and the versions of `constraints.txt`, as they are packed. An extra of
several is written with commas, `cpu,fit`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from safetykit.bench.skeleton import arguments, read_results, run, say, write_results, write_table

ROOT = Path(__file__).parents[1]
OWN = "safetykit"
_SHOWN = 4  # largest packages of a row


def main(given: Sequence[str] | None = None) -> int:
    """Fetch, weigh and write the table."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--extra", action="append", help="cpu by default: what running an export needs")
    options = parser.parse_args(given)
    path = options.out / "install.json"
    results = read_results(path, {"own": {}, "extras": {}})
    for extra in options.extra or ["cpu"]:
        say(f"fetching {OWN}[{extra}]")
        with TemporaryDirectory() as folder:
            wheels = fetched(extra, Path(folder))
            results["extras"][extra] = {wheel.name.split("-")[0]: wheel.stat().st_size for wheel in wheels}
            results["own"] = parts(next(wheel for wheel in wheels if wheel.name.startswith(f"{OWN}-")))
    write_results(path, results)
    write_table(path.with_suffix(".md"), table(results))
    return 0


def fetched(extra: str, folder: Path) -> list[Path]:
    """The wheels of safetykit with an extra and all that it requires."""
    source = folder / "source"  # a build leaves its work beside the sources, and packs what an earlier one left there
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__"))
    wanted = ["-c", ROOT / "constraints.txt", f"{source}[{extra}]"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", folder, *wanted], check=True)
    return sorted(folder.glob("*.whl"))


def parts(wheel: Path) -> dict[str, int]:
    """Packed bytes of a wheel: of the bundled reference VLM, and of all else."""
    sizes: Counter[str] = Counter()
    with zipfile.ZipFile(wheel) as packed:
        for one in packed.infolist():
            bundled = one.filename.startswith(f"{OWN}/toolkit/reference/") and not one.filename.endswith(".py")
            sizes["reference VLM" if bundled else "code"] += one.compress_size
    return dict(sizes)


def table(results: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """What was weighed, in megabytes."""
    lines = ["| installed | packages | wheels | largest |", "| --- | ---: | ---: | --- |"]
    for extra, sizes in results["extras"].items():
        largest = sorted(sizes, key=lambda name: -sizes[name])[:_SHOWN]
        named = ", ".join(f"{name} {_mb(sizes[name])}" for name in largest)
        lines.append(f"| `{OWN}[{extra}]` | {len(sizes)} | {_mb(sum(sizes.values()))} | {named} |")
    own = ", ".join(f"{name} {_mb(size)}" for name, size in sorted(results["own"].items(), key=lambda item: -item[1]))
    return "\n".join([*lines, "", f"safetykit's own wheel: {own}.", ""])


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    run(main)
