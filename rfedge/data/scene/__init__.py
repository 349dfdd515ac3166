"""Content of a frame: scenes, furniture, cameras, and questions about them."""
