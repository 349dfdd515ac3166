"""A policy behind a websocket, spoken as openpi speaks it. Read `app.py` first, `wire.py` for what crosses the border."""
