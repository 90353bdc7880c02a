"""The live server: HTTP and WebSocket in front, the engine in a process of its own behind."""
