"""Step graphs with explicit state, for runtimes other than torch.

`livereel export` writes a model that streams as a package: a folder of graphs and their weights
with a manifest (`livereel.engine.manifest` describes that). No graph keeps anything between calls:
all state goes in and comes out. Nor do they draw noise or know about prompts' changes, windows and
seeds; that is the loop below. Batches are 1, shapes fixed. Latents, flow and frames are float32;
text, keys, values and caches have the manifest's dtype.

Letters: C latent channels, Cc `control_channels` and `goal_channels` together (0 where the recipe
has none), H W latent height and width, T `chunk_latents`, T1 `first_chunk_latents`, S
`latent.past`, L `max_sequence_length`, D `latent.text_width`, n tokens a latent frame, h heads, d
head width. A latent frame stands for `temporal_factor` (4) frames, a stream's first one for 1.

    text_encode       tokens [1,L] int64, mask [1,L] int64 (1 for a prompt's own tokens)
                      -> text [1,L,D]
    text_kv           text -> text_k, text_v [layers,L,h,d]: once for each prompt
    denoise_first     latent [1,C+Cc,T1,H,W], timestep [1] on 0..1000, text_k, text_v
                      -> flow [1,C,T1,H,W], k, v [layers,T1,n,h,d]
    denoise           latent [1,C+Cc,T,H,W], timestep [1], text_k, text_v,
                      past_k, past_v [layers,S,n,h,d], positions [S+T] int64
                      -> flow [1,C,T,H,W], k, v [layers,T,n,h,d]
    vae_decode_first  latent [1,C,1,H,W] -> frames [1,3,1,height,width] in [-1,1], next_cache_NN
    vae_decode_one    latent [1,C,1,H,W], cache_NN -> frames [1,3,4,height,width], next_cache_NN
    vae_decode        latent [1,C,T,H,W], cache_NN -> frames [1,3,4T,height,width], next_cache_NN
    vae_encode_first  frames [1,3,1,height,width] -> latent [1,C,1,H,W], next_cache_NN
    vae_encode        frames [1,3,4,height,width], cache_NN -> latent [1,C,1,H,W], next_cache_NN

`denoise_first` makes a stream's first chunk and `denoise` all others, each called once for every
timestep and once more, at `context_noise` and with the clean latents, for the `k` and `v` that
later chunks see; those of the other calls are dropped. Keys are not rotated: `past_k` and `past_v`
hold latent frames in any order, and `positions` says where in time each one is, those of the past
first: 0 for the oldest one that is there, the chunk's own behind the newest. -1 stands for one that
is not there. So a ring can be given as it lies, and a chunk of fewer than T latent frames is padded
and its surplus marked by -1. What a chunk sees are the newest `window - T` latent frames before it,
and the stream's first `sinks`.

A model that follows a control, as the demo does, has `control_channels` behind the latents' own: a
map for each of the frames that a latent frame stands for; the stream's first latent frame, which
stands for one, has that one's map in all of them. A map is
`exp(-(dx * dx + dy * dy) / 2)`, `dx` and `dy` being the latent pixels from where the object shall
be, (x, y) in shares of W and H, to a pixel's center, and the shorter way, perhaps over the edge,
where `control_wraps`. Zeros mean that it is not led. A model that arrives at pictures, as the demo
does, has `goal_channels` behind these: again a plane for each of the frames, full of the share of
the way from the frame before the chunk to the picture that is behind that frame (k / n for the k-th
frame of a chunk where n are left, 1 from the picture on, 0 in a stream's first frame), and then the
picture's latent, as `vae_encode_first` gives it, in each latent frame, and then where each latent
pixel is: sine and cosine of 2 pi (y + 0.5) / H, and of x and W alike. Zeros mean that there is no
picture, and are what they are given while a control leads. All calls of a chunk are given the same,
the one at `context_noise` among them.

A DiT that keeps no keys and values, trained on whole clips (CogVideoX), streams over windows that
overlap, and so do its graphs. Its state are the clean latents themselves, its flow is velocity, it
has no `text_kv` and needs no call for what later chunks see; all else is as above:

    text_encode       tokens [1,L] int64 -> text [1,L,D]: padding counts like words
    denoise_first     latent [1,C,T1,H,W], timestep [1] on 0..999, text -> flow like latent
    denoise           latent [1,C,T,H,W], timestep [1], text, past [1,C,S,H,W] float32,
                      positions [S+T] int64 -> flow like latent

Where `latent.temporal_patch` is there (CogVideoX 1.5), so many latent frames make a token: those
that are missing come first, then the past in order, as much of it as makes with the chunk a
multiple of that.

The VAE's `next_cache_NN` are the `cache_NN` of the next call, whichever graph that is (the
manifest's `state` says so). Latents are as the DiT has them; `latent.mean` and `latent.std` give
the VAE's own scale. Flow is noise minus data at `sigma = timestep / 1000`, or, where the stream's
`solver` is "ddim" or "dpm", velocity (`livereel.engine.sampling.velocity` has the noise levels).

Where `latent.vae_chunk` is there, how a clip is cut is part of what the VAE makes of it: calls have
that many latent frames, and what is left over joins a stream's first one (for 2: 3, 2, 2, ...).
`vae_decode_first`, `vae_decode`, `vae_encode_first` and `vae_encode` are then as long as a stream
from noise wants them; `vae_decode_first_3`, with the number of frames of its input, is one for a
stream that begins otherwise, say after a clip.

A stream in plain onnxruntime and numpy, for a model whose first chunk is one latent frame:

    import json, numpy as np, onnxruntime

    manifest = json.load(open(f"{package}/manifest.json"))
    graphs, latent, stream = manifest["graphs"], manifest["latent"], manifest["stream"]
    loaded = {name: onnxruntime.InferenceSession(f"{package}/{graph['file']}")
              for name, graph in graphs.items()}

    def run(name, *values):
        names = [x["name"] for x in graphs[name]["inputs"]]
        return loaded[name].run(None, dict(zip(names, values)))

    def past(old, new):
        return np.concatenate([old, new], axis=1)[:, -latent["past"]:]

    prompt = run("text_kv", text)
    past_k, past_v = (np.zeros(x["shape"], x["dtype"]) for x in graphs["denoise"]["inputs"][4:6])
    sigmas = np.float32(stream["timesteps"] + [0]) / 1000
    for chunk in range(chunks):
        count = stream["chunk_latents"] if chunk else 1
        seen = min(latent["past"], (chunk > 0) + max(0, chunk - 1) * stream["chunk_latents"])
        places = [-1] * (latent["past"] - seen) + list(range(seen + count))
        more = (past_k, past_v, np.int64(places)) if chunk else ()
        graph, shape = "denoise" if chunk else "denoise_first", (
            1, latent["channels"], count, latent["height"], latent["width"])
        told = stream.get("control_channels", 0) + stream.get("goal_channels", 0)
        free = [(0, 0), (0, told), *[(0, 0)] * 3]  # zeros: not led, and to no picture
        x = noise(chunk, 0, shape)
        for i, time in enumerate(stream["timesteps"]):
            flow = run(graph, np.pad(x, free), np.float32([time]), *prompt, *more)[0]
            clean = x - sigmas[i] * flow
            fresh = stream["solver"] == "renoise" and sigmas[i + 1] > 0
            other = noise(chunk, i + 1, shape) if fresh else clean + flow
            x = (1 - sigmas[i + 1]) * clean + sigmas[i + 1] * other
        _, k, v = run(graph, np.pad(x, free), np.float32([stream["context_noise"]]), *prompt, *more)
        past_k, past_v = past(past_k, k), past(past_v, v)
        frames, *caches = run("vae_decode", x, *caches) if chunk else run("vae_decode_first", x)
        show(frames)

`text` is what `text_encode` gives, `noise(chunk, step, shape)` standard normal numbers (LiveReel's
own are `livereel.engine.sampling.noise.normal`, in C++ `csrc/philox.h`). Where `guidance_scale` is
above 1 each flow is `away + guidance_scale * (flow - away)`, `away` being what the same call gives
for the empty prompt; aoti packages have that prompt's `text` in `negative.safetensors`.
"""
