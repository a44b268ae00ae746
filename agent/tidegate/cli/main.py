# SPDX-License-Identifier: Apache-2.0
"""`tidegate`: find the command group, run it, and turn errors into a message and an exit code.

Exit codes: 0 done; 1 a claim or check did not hold; 2 wrong usage, configuration or host; 3 refused
documents; 4 a guard refuses; 5 hosts did not follow; 6 stopped before the end; 130 interrupted; 141
the output was closed. The groups' own modules are imported lazily, so that `tidegate --help` is
fast.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from tidegate import __version__
from tidegate.errors import TidegateError

_BROKEN_PIPE: Final = 141  # as a shell reports an end by SIGPIPE
_GROUPS: Final = {
    "agent": "run the agent of a load-balancer host",
    "rollback": "put an earlier generation of this host back, and freeze",
    "freeze": "keep what is in force on this host",
    "thaw": "let this host follow its keyspace again",
    "history": "what was in force when, and who changed it",
    "lab": "a rack in network namespaces, to try things on",
    "validate": "check files of documents",
    "plan": "what documents would do to this host's data plane",
    "decap": "a backend's end of the tunnel",
    "apply": "write files of documents to etcd, and wait for the hosts",
    "override": "lift a guard for a while",
    "health": "every backend's state, and which host says so",
    "rollout": "bring a release to a fleet in waves",
    "events": "what happens to sampled flows, live",
    "simulate": "what the balancer would do with a capture",
    "demo": "show on real packets that no connection is lost",
}


def parse(given: Sequence[str]) -> argparse.Namespace:
    """Parse arguments; `run` of the result is the command. End the process if they are wrong."""
    parser = argparse.ArgumentParser(
        prog="tidegate",
        description="XDP layer-4 load balancer driven by etcd.",
        epilog="Each command has its own help and examples: tidegate agent run --help",
    )
    parser.add_argument("--version", action="version", version=f"tidegate {__version__}")
    subparsers = parser.add_subparsers(dest="group", metavar="COMMAND", required=True)
    wanted = next((word for word in given if not word.startswith("-")), None)
    for group, summary in _GROUPS.items():
        if group == wanted:
            import_module(f"tidegate.cli.{group}").register(subparsers)
        else:
            subparsers.add_parser(group, help=summary)
    return parser.parse_args(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except TidegateError as error:
        sys.stderr.write(f"tidegate: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
