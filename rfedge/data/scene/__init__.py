"""What a frame shows: scenes, furniture, cameras, and questions about them."""
