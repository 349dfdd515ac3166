"""Say whether MuJoCo can render here without a screen, and how to get that when it cannot."""

from __future__ import annotations

import os
import sys

from rfedge.errors import RfedgeError


def main() -> int:
    from rfedge.envs import make_environment

    try:
        with make_environment("playtable", scene="D", seed=0) as environment:
            environment.reset()
            print(f"rendering: {environment.renderer}")
    except RfedgeError as error:
        print(f"rendering: {error}", file=sys.stderr)
        print(f"(MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'not set')!r}; egl and osmesa need no screen)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
