"""Where things appear in CALVIN's pictures: against MuJoCo's cameras, which stand in PlayTable's scene by another road."""

import numpy as np

from rfedge.data.scene.scenes import project_gripper, project_static
from rfedge.envs import make_environment


def _centre(image: np.ndarray, colour: np.ndarray) -> np.ndarray | None:
    """Mean place (u, v) of the pixels that show a colour, in shares of the picture; None with fewer than 20 of them."""
    strength = image.astype(np.float64)
    alike = (strength * colour).sum(-1) - strength.max(-1) * colour.sum() * 0.55 - (strength * (1 - colour)).sum(-1) > 0
    rows, columns = np.nonzero(alike)
    return None if len(rows) < 20 else (np.array([columns.mean(), rows.mean()]) + 0.5) / len(image)


def test_known_points_of_calvins_static_picture() -> None:
    """Pixels of the button, the closed drawer's handle and a table spot, as CALVIN draws them."""
    points = np.array([[-0.12, -0.12, 0.485], [0.18, -0.247, 0.36], [0.05, -0.12, 0.46]])
    np.testing.assert_allclose(200 * project_static(points), [[56, 97], [114, 152], [93, 104]], atol=1.5)


def test_blocks_appear_where_they_are_projected() -> None:
    rng, found = np.random.default_rng(0), 0
    with make_environment("playtable", scene="D", seed=0) as environment:
        for _ in range(3):
            environment.reset()
            for _ in range(12):
                environment.advance(np.append(np.clip(rng.uniform(-1, 1, 6) - [0, 0, 0.5, 0, 0, 0], -1, 1), 1.0))
            observation = environment.observe()
            blocks_m = np.asarray(environment.scene_state())[6:].reshape(3, 6)[:, :3]
            tcp = np.asarray(environment.robot_state())[None, :6]
            for image, places in (
                (observation.static, project_static(blocks_m)),
                (observation.gripper, project_gripper(blocks_m[None], tcp)[0]),
            ):
                for colour, place in zip(np.eye(3)[[0, 2]], places[:2], strict=True):  # red, blue; pink is a mixture
                    centre = _centre(image, colour)
                    # Away from the edges, where a part is cut off; the centre of what is seen is not that of the block.
                    if centre is not None and (np.abs(place - 0.5) < 0.35).all():
                        assert np.linalg.norm(place - centre) < 0.06
                        found += 1
    assert found >= 3


def test_what_is_behind_the_hand_is_not_a_place() -> None:
    pose = np.array([[0.0, 0.0, 0.5, np.pi, 0.0, 0.0]])
    seen, behind = project_gripper(np.array([[[0.0, 0.0, 0.45], [0.0, 0.0, 1.5]]]), pose)[0]
    assert ((seen > 0) & (seen < 1)).all()
    assert np.isnan(behind).all()
