"""Runs the command line in this process as if packages were not installed.

    python without.py torch,scipy run EXPORT --prompt hi ++ verify EXPORT

Commands are parted by ``++``, before which one must succeed, or by ``||``, before which one must fail; the first that
does not ends with its exit code.
"""

import sys


class Without:
    """A finder that does not find some packages."""

    def __init__(self, finder, packages):
        self._finder, self._packages = finder, packages

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self._packages else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def main(packages, *arguments):
    hidden = set(packages.split(","))
    sys.meta_path[:] = [Without(finder, hidden) for finder in sys.meta_path]
    from safetykit.cli import main as command_line

    commands = [[]]
    for argument in (*arguments, "++"):
        commands[-1].append(argument)
        if argument in ("++", "||"):
            commands.append([])
    for *command, then in filter(None, commands):
        try:
            command_line(command)
        except SystemExit as end:
            if bool(end.code) != (then == "||"):
                raise
    found = sorted(name for name in hidden if name in sys.modules)
    assert not found, found


if __name__ == "__main__":
    main(*sys.argv[1:])
