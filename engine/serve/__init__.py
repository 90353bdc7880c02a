"""The live server: HTTP and WebSocket in front, the engine in a process of its own behind.

A frame's way, from the last file to the first that a client meets:

    the engine's process      worker     its loop: commands in, chunks out
                              table      its sessions; scheduler and admission say whose turn it is
                              backend    what makes chunks: model_backend, in tests fake_backend
    between the two           messages   what is said; wire and link carry it, FrameRing pixels
    the server's process      engine_process   starts the engine, and starts it anew when it dies
                              streams    all streams; stream is one: its controls, frames in time
                              renditions frames to packets; quality says at which level
                              viewer     one socket's way out; socket is its way in
                              app        HTTP: page, health, images, videos_api; gate lets in
    the client                protocol   what crosses the socket; client speaks it in Python

Everything in front of the engine is written against `worker_client.EngineClient`.
"""
