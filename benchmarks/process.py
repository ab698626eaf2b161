"""Run a command once; print its wall seconds, peak resident memory and standard output as JSON.

    python benchmarks/process.py COMMAND ARG ...

A process of its own because the kernel counts the memory of the process that starts a command as the command's:
this one holds almost nothing.
"""

import json
import os
import sys
import tempfile
import time


def main() -> None:
    with tempfile.TemporaryFile("w+") as printed:
        begin = time.perf_counter()
        child = os.posix_spawnp(
            sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, printed.fileno(), 1)]
        )
        _, status, usage = os.wait4(child, 0)
        wall = time.perf_counter() - begin
        printed.seek(0)
        result = {"wall": wall, "peak_mib": usage.ru_maxrss / 1024, "printed": printed.read()}
    print(json.dumps(result))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
