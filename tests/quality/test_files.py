"""A file can be read in one sitting."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST = 350  # lines


def test_no_file_of_code_is_longer_than_one_sitting():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.split() or [str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py")]
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in names if (ROOT / name).is_file()}
    assert len(lines) > 500
    assert not {name: count for name, count in lines.items() if count > MOST}
