"""openpi's own client asks a served policy, and the guide's snippet runs as it is printed."""

import re
import sys
from pathlib import Path
from types import ModuleType

import msgpack
import numpy as np
import pytest
from websockets.sync.client import connect

from rfedge.policies import SHIPPED, find_bundle
from rfedge.runtimes import EdgePolicy, RuntimeSettings
from rfedge.runtimes.backends.registry import open_parts
from rfedge.runtimes.server.wire import unpack
from tests.runtimes.server.running_server import GatedPolicy, frame, running
from tests.synthetic_demonstrations import NEUTRAL_STATE

# websockets 17 warns of how openpi's client connects, and the client never closes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
GUIDE = Path(__file__).parents[3] / "docs/how-to/serve_a_policy.md"


def snippet() -> str:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (code,) = (block for block in blocks if "openpi_client" in block)
    return str(code)


class StandInClient:
    """The wire of openpi's client, for machines without it; the real one is tested below."""

    def __init__(self, host: str, port: int, api_key: str | None = None) -> None:
        self._connection = connect(f"ws://{host}:{port}", compression=None, max_size=None)
        self._metadata = unpack(self._connection.recv())  # type: ignore[arg-type]

    def get_server_metadata(self) -> dict:
        return self._metadata

    def infer(self, observation: dict) -> dict:
        def pack_array(value: object) -> object:
            assert isinstance(value, np.ndarray)
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}

        self._connection.send(msgpack.packb(observation, default=pack_array))
        answer = self._connection.recv()
        assert isinstance(answer, bytes), answer
        return unpack(answer)

    def reset(self) -> None:
        """As in openpi's client: nothing is sent."""


def run_snippet(url: str) -> list[np.ndarray]:
    """Run the guide's code on three frames of an episode, twice, and return the actions."""
    shown: list[int] = []

    def observe() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        observation = frame(len(shown) % 3)
        shown.append(1)
        return observation.static, observation.gripper, NEUTRAL_STATE

    played: list[np.ndarray] = []
    code = snippet().replace('"127.0.0.1", 8000', f'"127.0.0.1", {url.rsplit(":", 1)[1]}')
    names = {"observe": observe, "play": played.append, "token": None, "num_episodes": 2, "num_calls": 3}
    exec(compile(code, str(GUIDE), "exec"), names)
    return played


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("real", [True, False])
def test_the_guides_snippet_runs_as_printed_on_the_shipped_policies(
    name: str, real: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if real:
        pytest.importorskip("openpi_client", reason="openpi-client is not installed (it asks for numpy 1; --no-deps works)")
    else:
        modules = {"openpi_client": {}, "openpi_client.websocket_client_policy": {"WebsocketClientPolicy": StandInClient}}
        for path, members in modules.items():
            module = ModuleType(path)
            vars(module).update(members)
            monkeypatch.setitem(sys.modules, path, module)
    bundle, settings = find_bundle(Path(name)), RuntimeSettings(threads=1)
    expected = []
    with EdgePolicy.load(bundle, settings=settings) as policy:
        for seed in range(3):
            if not seed:
                policy.reset("open the drawer")
            observation = frame(seed)
            expected.append(policy.act(type(observation)(observation.static, observation.gripper, NEUTRAL_STATE)).actions)
    with GatedPolicy(open_parts("onnxruntime", bundle, settings)) as served, running(served) as (_, url):
        played = run_snippet(url)
    # The second episode begins as the first did: openpi's own reset() sends nothing, the snippet's `reset` does.
    for actions, right in zip(played, [*expected, *expected], strict=True):
        np.testing.assert_array_equal(actions, right)


def test_openpis_client_reset_alone_is_not_a_reset_and_can_be_noticed(policy: GatedPolicy) -> None:
    openpi = pytest.importorskip(
        "openpi_client.websocket_client_policy", reason="openpi-client is not installed (--no-deps works with numpy 2)"
    )
    with running(policy) as (_, url):
        remote = openpi.WebsocketClientPolicy("127.0.0.1", int(url.rsplit(":", 1)[1]))
        said = remote.get_server_metadata()
        assert (said["control_hz"], said["remembers_calls"], said["action"]["position_scale_m"]) == (30.0, 11, 0.02)
        fields = {
            "observation/image": frame(0).static,
            "observation/wrist_image": frame(0).gripper,
            "observation/state": NEUTRAL_STATE,
            "prompt": "open the drawer",
        }
        first = remote.infer(fields)
        remote.reset()
        second = remote.infer(fields)
        assert (first["remembered_calls"], second["remembered_calls"]) == (0, 1), "its reset() sent nothing"
        third = remote.infer(fields | {"reset": np.bool_(True)})
        assert third["remembered_calls"] == 0
        np.testing.assert_array_equal(third["actions"], first["actions"])
        with pytest.raises(RuntimeError, match="refused: observation/image: got shape"):
            remote.infer(fields | {"observation/image": np.zeros((224, 224, 3), np.uint8)})
        assert remote.infer(fields)["actions"].shape == (4, 7)
