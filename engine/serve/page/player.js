// Packets to pixels: by WebCodecs onto a canvas, or by Media Source Extensions into a video element.

import { CATCH_UP, KEYFRAME } from "./protocol.js";
import { codecOf, fragment, initSegment, same, TIMESCALE, toSample, units } from "./mp4.js";

const MOST_OFF_MS = 300;
const CREEP_MS = 1;

export async function makePlayer(elements, wanted) {
  const config = { codec: "avc1.42E01E", optimizeForLatency: true };
  if (wanted !== "mse" && "VideoDecoder" in window) {
    const answer = await VideoDecoder.isConfigSupported(config).catch(() => null);
    if (answer?.supported) return new CodecPlayer(elements.canvas);
  }
  const source = window.ManagedMediaSource ?? window.MediaSource;
  if (source?.isTypeSupported('video/mp4; codecs="avc1.42E01E"')) return new SourcePlayer(elements.video, source);
  return null;
}

// Events of both: "shown" {frame, chunk, width, height}, "broken".
class CodecPlayer extends EventTarget {
  constructor(canvas) {
    super();
    this.name = "WebCodecs";
    this.element = canvas;
    this.pen = canvas.getContext("2d", { alpha: false, desynchronized: true });
    this.open();
  }

  open() {
    this.known = new Map();
    this.count = 0;
    this.sps = null;
    this.base = null;
    this.timers = new Set();
    this.decoder = new VideoDecoder({
      output: (picture) => this.got(picture),
      error: (error) => this.dispatchEvent(new CustomEvent("broken", { detail: error.message })),
    });
  }

  // Begin anew at the next keyframe.
  restart() {
    for (const timer of this.timers) clearTimeout(timer);
    if (this.decoder.state !== "closed") this.decoder.close();
    this.open();
  }

  // Go on behind a cut: what is decoded already will still be shown.
  resume() {}

  get backlog() {
    return this.decoder.state === "configured" ? this.decoder.decodeQueueSize : 0;
  }

  take(packet) {
    const key = (packet.flags & KEYFRAME) !== 0;
    if (key) {
      const sps = units(packet.data).find((unit) => (unit[0] & 31) === 7);
      if (sps && sps.join() !== this.sps) {
        this.sps = sps.join();
        this.decoder.configure({ codec: codecOf(sps), optimizeForLatency: true });
      }
    }
    if (this.decoder.state !== "configured") return;
    const timestamp = this.count++;
    this.known.set(timestamp, packet);
    this.decoder.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp, data: packet.data }));
  }

  got(picture) {
    const packet = this.known.get(picture.timestamp);
    this.known.delete(picture.timestamp);
    if (!packet || packet.flags & CATCH_UP) { picture.close(); return; }
    // Frames are shown as evenly as they were made, at the price of a few milliseconds: one that is
    // late puts off those behind it, by a part of that, and they catch up little by little.
    const now = performance.now(), pts = packet.pts / 1000;
    if (this.base === null || Math.abs(this.base + pts - now) > MOST_OFF_MS) this.base = now - pts;
    const wait = this.base + pts - now;
    this.base -= wait < 0 ? wait / 4 : CREEP_MS;
    if (wait < 2) { this.draw(picture, packet); return; }
    const timer = setTimeout(() => { this.timers.delete(timer); this.draw(picture, packet); }, wait);
    this.timers.add(timer);
  }

  draw(picture, packet) {
    const { displayWidth: width, displayHeight: height } = picture;
    const canvas = this.element;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    this.pen.drawImage(picture, 0, 0);
    picture.close();
    this.dispatchEvent(new CustomEvent("shown", { detail: { frame: packet.frame, chunk: packet.chunk, width, height } }));
  }
}

class SourcePlayer extends EventTarget {
  constructor(video, source) {
    super();
    this.name = "Media Source";
    this.element = video;
    this.source = source;
    video.addEventListener("error", () => this.dispatchEvent(new CustomEvent("broken", { detail: "the video element gave up" })));
    video.requestVideoFrameCallback?.((now, data) => this.seen(data));
    this.fps = 16;
    this.open();
  }

  open() {
    this.queue = [];
    this.config = null;
    this.buffer = null;
    this.time = 0;
    this.number = 0;
    this.frames = [];
    const media = new this.source();
    this.media = media;
    this.element.disableRemotePlayback = true;
    this.element.src = URL.createObjectURL(media);
    media.addEventListener("sourceopen", () => this.push());
    this.element.play().catch(() => {});
  }

  restart() {
    URL.revokeObjectURL(this.element.src);
    this.open();
  }

  resume() {
    this.restart();
  }

  get backlog() {
    return this.queue.length;
  }

  take(packet) {
    const sample = toSample(packet, this.fps);
    if (sample.config && !(this.config && same(sample.config, this.config))) {
      this.config = sample.config;
      this.queue.push(initSegment(this.config));
    }
    if (!this.config) return;
    this.number += 1;
    this.queue.push(fragment(sample, this.number, this.time));
    this.frames.push({ until: (this.time + sample.duration) / TIMESCALE, frame: packet.frame, chunk: packet.chunk });
    this.time += sample.duration;
    this.push();
  }

  push() {
    if (this.media.readyState !== "open" || !this.config) return;
    if (!this.buffer) {
      this.buffer = this.media.addSourceBuffer(`video/mp4; codecs="${codecOf(this.config.sps)}"`);
      this.buffer.addEventListener("updateend", () => this.push());
    }
    if (this.buffer.updating) return;
    if (this.queue.length) {
      const parts = this.queue.splice(0);
      this.buffer.appendBuffer(joined(parts));
      return;
    }
    this.follow();
  }

  // Stay near the newest frame, and let go of what was shown long ago.
  follow() {
    const video = this.element, ranges = this.buffer.buffered;
    if (!ranges.length) return;
    const end = ranges.end(ranges.length - 1);
    if (end - video.currentTime > 0.5) video.currentTime = end - 0.02;
    video.playbackRate = end - video.currentTime > 0.2 ? 1.1 : 1;
    if (video.paused) video.play().catch(() => {});
    if (end - ranges.start(0) > 30) this.buffer.remove(0, end - 10);
  }

  seen({ mediaTime, width, height }) {
    while (this.frames.length && this.frames[0].until <= mediaTime + 0.001) this.frames.shift();
    if (this.frames.length) {
      const { frame, chunk } = this.frames[0];
      this.dispatchEvent(new CustomEvent("shown", { detail: { frame, chunk, width, height } }));
    }
    this.element.requestVideoFrameCallback((now, data) => this.seen(data));
  }
}

function joined(parts) {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) { out.set(part, at); at += part.length; }
  return out;
}
