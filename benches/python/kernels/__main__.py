"""Every kernel beside the runtimes that people use, on one thread of one core.

    python benches/python/kernels [--rounds N] [--only TEXT ...] [--core N] [--record FILE]

Prints each row as it is measured; ``--record`` writes FILE.md (the table of ratios) and FILE.json (every figure).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import arrays  # noqa: E402 - NumPy reads the environment when it is imported
import blocked  # noqa: E402
import conv  # noqa: E402
import harness  # noqa: E402
import matmul  # noqa: E402
import peers  # noqa: E402
import seen  # noqa: E402

import requant  # noqa: E402

AIMS = {
    True: "The aims are those for CPUs with VNNI.",
    False: "This CPU has no VNNI. For products of 8-bit matrices and dense convolutions the aim that was set is 65 % "
    "of the peak; beside peers it is a yardstick of our own: no slower than onnxruntime's exact kernels, 1.4 x NumPy. "
    "(With VNNI the aims are 1.1 to 1.4 x onnxruntime and 4 x NumPy.)",
}
GROUPS = (matmul, conv, blocked, arrays, seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    harness.peak_binary()
    cpu = requant.cpu_info()
    vnni = "vnni" in cpu["kernels"]
    head = f"{cpu['kernels']} kernels on {platform.machine()}, {peers.versions()}, Python {platform.python_version()}"
    print(head, flush=True)
    results = []
    for group in GROUPS:
        for row in group.rows(vnni):
            if any(text in f"{row.group}: {row.name}" for text in arguments.only):
                allowed = os.sched_getaffinity(0)
                if row.clock is harness.time.thread_time:
                    os.sched_setaffinity(0, {arguments.core})
                results.append(harness.measure(row, arguments.rounds))
                os.sched_setaffinity(0, allowed)
                print(*harness.show(results[-1]), sep="\n", flush=True)
    if arguments.record:
        lines = [f"# Kernels: {head}", "", AIMS[vnni], "", *harness.markdown(results), ""]
        arguments.record.with_suffix(".md").write_text("\n".join(lines), "utf-8")
        figures = [result.as_dict() for result in results]
        arguments.record.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
