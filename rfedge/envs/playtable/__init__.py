"""PlayTable: a MuJoCo twin of CALVIN's table and Franka Panda, built from primitive shapes."""
