"""Files that are written whole or not at all: atomic names, journals, room on the disk, caches."""
