"""A bundle as a policy: text, backbone, head, one step."""
