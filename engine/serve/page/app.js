// The page: what a person does to the stream, and what the stream says to a person.

import { CATCH_UP, Connection, KEYFRAME } from "./protocol.js";
import { file, toSample } from "./mp4.js";
import { makePlayer } from "./player.js";
import { Steering } from "./steering.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = [
  "a red circle moving right on a black background",
  "a large blue star moving left on a white background",
  "a small yellow square moving up on a gray background",
  "a pink triangle moving down on a brown background",
];
const BARS = 40;
const MOST_RECORDED = 512 << 20;
const STAGES = ["text", "dit", "cache", "vae"];
const query = new URLSearchParams(location.search), hash = new URLSearchParams(location.hash.slice(1));

const live = { connection: null, player: null, created: null, group: [], recording: null, bars: [], asked: new Map(), shown: [], bytes: [], begun: 0, image: null };
globalThis.livereel = live;
live.steering = new Steering($("stage"), $("aim"), (control) => {
  live.led = { id: ask("update", { control }), until: Infinity };
  $("free").hidden = !control.length;
});

// What is said to a person

function state(kind, words) {
  $("state").dataset.state = kind;
  $("state").lastElementChild.textContent = words;
}

function notice(words, { again = false, mild = false } = {}) {
  $("notice").hidden = !words;
  $("notice").className = mild ? "mild" : "";
  $("notice").firstElementChild.textContent = words ?? "";
  $("again").hidden = !again;
}

const REASONS = {
  busy: "The server is busy: as many streams run as it can keep up with.",
  gone: "That stream has ended.",
  idle: "The stream was ended, since nobody watched it.",
  lifetime: "The stream was ended, since it had reached its longest time.",
  failed: "The engine could not go on with this stream.",
  draining: "The server is going down.",
};

async function begin(request) {
  notice("");
  const model = await fetch("/v1/model").catch(() => null);
  if (!model) return fail("The server cannot be reached.");
  if (model.status === 401) { location.href = "/login"; return undefined; }
  if (model.status === 403) return fail("The server refuses this page: it is not known by this address. See --allow-host.");
  if (!live.player) {
    live.player = await makePlayer({ canvas: $("canvas"), video: $("video") }, query.get("transport"));
    if (!live.player) return fail("This browser can decode H.264 neither by WebCodecs nor by Media Source Extensions.");
    live.player.addEventListener("shown", ({ detail }) => shown(detail));
    live.player.addEventListener("broken", () => { live.player.restart(); live.connection?.socket?.close(); });
    $("canvas").hidden = live.player.element !== $("canvas");
    $("video").hidden = live.player.element !== $("video");
    if (live.player.name !== "WebCodecs" && query.get("transport") !== "mse") {
      notice("This browser offers no WebCodecs here (it may need https), so that the picture comes a little later.", { mild: true });
    }
  }
  live.player.restart();
  Object.assign(live, { group: [], asked: new Map(), bars: [], shown: [], bytes: [], first: null, begun: performance.now() });
  $("timeline").replaceChildren();
  const connection = new Connection(request);
  live.connection = connection;
  connection.backlog = () => live.player.backlog;
  connection.addEventListener("created", ({ detail }) => created(detail, Boolean(request.resume)));
  connection.addEventListener("frame", ({ detail }) => packet(detail));
  connection.addEventListener("message", ({ detail }) => message(detail));
  connection.addEventListener("cut", () => state("wait", live.created ? "connection lost, coming back" : "waiting for the server"));
  connection.addEventListener("closed", () => closed());
  connection.open();
  state("wait", "starting");
  $("go").textContent = "Change";
  return connection;
}

function fail(words) {
  state("bad", "not running");
  notice(words, { again: true });
  return undefined;
}

function created(message, resumed) {
  const back = live.created !== null && message.session_id === live.created.session_id;
  live.created = message;
  live.player.fps = message.fps;
  if (back) live.player.resume();
  const watching = message.resume_token === null;
  if (!watching) sessionStorage.setItem("resume", message.resume_token);
  $("stage").style.setProperty("--aspect", Math.min(2.4, Math.max(1, message.width / message.height)));
  $("controls").disabled = watching;
  $("prompt").hidden = $("examples").hidden = $("picture").hidden = watching;
  $("steps").max = message.max_steps;
  if (!back) { $("steps").value = message.max_steps; $("steps-value").textContent = message.max_steps; }
  if (!back && !$("text").value) $("text").value = message.prompt;
  const led = message.control && !watching;
  live.steering.follow(led ? message : null);
  $("lead").hidden = !led;
  if (!back) $("free").hidden = !(led && resumed); // it may have been led before the page was loaded
  pressed("pause", message.paused);
  $("pause").textContent = message.paused ? "Resume" : "Pause";
  $("empty").hidden = true;
  state("live", watching ? "watching" : message.paused ? "paused" : "live");
  if (message.lost) notice(`${message.lost} frames were lost in the cut.`, { mild: true });
  else if (!$("notice").classList.contains("mild")) notice("");
}

function message(said) {
  switch (said.type) {
    case "event.applied": {
      const kind = said.asked?.type;
      if (kind === "session.pause" || kind === "session.resume") {
        const paused = kind === "session.pause";
        pressed("pause", paused);
        $("pause").textContent = paused ? "Resume" : "Pause";
        state("live", paused ? "paused" : "live");
      }
      const asked = live.asked.get(said.event_id);
      if (asked) { asked.frame = said.first_frame; asked.chunk = said.chunk; }
      if (live.led?.id === said.event_id) live.led.until = said.first_frame + live.created.chunk_frames;
      live.applied = said;
      break;
    }
    case "event.rejected":
      live.asked.delete(said.event_id);
      notice(`That was not taken: ${said.message}.`);
      break;
    case "stats": bar(said); break;
    case "session.recovered": notice("The engine was started anew; the stream goes on from a moment ago.", { mild: true }); break;
    case "draining": state("wait", "the server is going down"); break;
    case "session.ended":
      if (said.reason !== "stopped") notice(REASONS[said.reason] ?? "The stream has ended.", { again: true });
      break;
    case "error":
      if (said.code === "busy") notice(`${REASONS.busy} Trying again in ${Math.ceil(said.retry_after_s ?? 1)} s.`);
      else if (said.code === "gone") sessionStorage.removeItem("resume");
      if (said.code !== "busy") notice(REASONS[said.code] ?? `${said.message}.`, { again: !said.retryable });
      break;
  }
}

function closed() {
  if (live.recording) record();
  const ended = live.created !== null;
  live.created = live.connection = live.led = null;
  live.steering.follow(null);
  $("lead").hidden = $("free").hidden = true;
  sessionStorage.removeItem("resume");
  $("controls").disabled = true;
  $("go").textContent = "Start";
  state("idle", ended ? "ended" : "not running");
  if (!ended && $("notice").hidden) fail("The server cannot be reached.");
}

// Frames

function packet(frame) {
  live.player.take(frame);
  live.bytes.push([performance.now(), frame.data.length]);
  if (frame.flags & CATCH_UP && !(frame.flags & KEYFRAME) && !live.group.length) return;
  if (frame.flags & KEYFRAME) live.group = [];
  const sample = toSample(frame, live.created.fps);
  live.group.push(sample);
  if (live.recording) {
    live.recording.add(sample);
    if (live.recording.size > MOST_RECORDED) record();
  }
}

function shown({ frame, width, height }) {
  const now = performance.now();
  live.frame = frame;
  live.shown.push(now);
  if (live.first === null) {
    live.first = now - live.begun;
    $("n-first").textContent = seconds(live.first);
  }
  for (const [id, asked] of live.asked) {
    if (asked.frame !== undefined && frame >= asked.frame) {
      live.asked.delete(id);
      live.control = now - asked.at;
      $("n-control").textContent = seconds(live.control);
    }
  }
  if (frame >= live.led?.until) live.steering.arrived();
  $("n-size").textContent = `${width}×${height}`;
}

function seconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

setInterval(() => {
  const now = performance.now(), since = now - 2000;
  live.shown = live.shown.filter((at) => at > since);
  live.bytes = live.bytes.filter(([at]) => at > since);
  if (!live.connection) return;
  $("n-fps").textContent = (live.shown.length / 2).toFixed(1);
  const bits = live.bytes.reduce((sum, [, size]) => sum + size, 0) * 4;
  $("n-rate").textContent = bits > 1e6 ? `${(bits / 1e6).toFixed(1)} Mbit/s` : `${Math.round(bits / 1e3)} kbit/s`;
  if (live.recording) $("recording").lastElementChild.textContent = live.recording.clock();
}, 500);

function bar(stats) {
  const marked = [...live.asked.values()].some((asked) => asked.chunk === stats.chunk);
  live.bars.push({ ...stats, marked });
  live.bars = live.bars.slice(-BARS);
  const most = Math.max(...live.bars.map((one) => STAGES.reduce((sum, name) => sum + one[`${name}_s`], 0)), 0.001);
  $("timeline").replaceChildren(...live.bars.map((one) => {
    const column = document.createElement("div");
    if (one.marked) column.className = "mark";
    column.title = `chunk ${one.chunk}: ${seconds(1000 * one.chunk_s)}, ${one.steps} steps`;
    for (const name of STAGES) {
      const part = document.createElement("b");
      part.className = name;
      part.style.height = `${(92 * one[`${name}_s`]) / most}%`;
      column.append(part);
    }
    return column;
  }));
  const level = stats.level ? `, quality step ${stats.level}` : "";
  const dropped = stats.dropped ? `, ${stats.dropped} dropped` : "";
  $("n-chunk").textContent = `chunk ${stats.chunk} in ${seconds(1000 * stats.chunk_s)}${level}${dropped}`;
}

// What a person does

function ask(type, fields) {
  if (!live.created) return null;
  const id = live.connection.control(type, fields);
  if (type !== "pause" && type !== "stop") live.asked.set(id, { at: performance.now() });
  return id;
}

function pressed(id, on) {
  $(id).setAttribute("aria-pressed", String(on));
}

// The chosen picture as the field of a request; null when it could not be uploaded.
async function uploaded() {
  if (!live.image) return {};
  const answer = await fetch("/v1/images", { method: "POST", body: live.image }).catch(() => null);
  const said = await answer?.json().catch(() => null);
  if (answer?.ok) return { image: said.id };
  notice(said?.error?.message ?? "The image could not be uploaded.", { again: !live.connection });
  return null;
}

async function start() {
  const prompt = $("text").value.trim() || $("text").placeholder;
  $("text").value = prompt;
  const image = await uploaded();
  if (!image) { state("bad", "not running"); return; }
  const loras = strengths();
  await begin({ prompt, seed: Number($("seed").value) || 0, ...image, ...(Object.keys(loras).length && { loras }) });
}

async function shot() {
  const prompt = $("text").value.trim(), image = await uploaded();
  if (image) ask("cut", { ...image, ...(prompt && { prompt }) });
}

function strengths() {
  const sliders = [...$("loras").querySelectorAll("input")];
  return Object.fromEntries(sliders.filter((one) => Number(one.value)).map((one) => [one.name, Number(one.value)]));
}

// A slider for each LoRA that the server has.
async function offer() {
  const answer = await fetch("/v1/model").catch(() => null);
  const model = answer?.ok ? await answer.json() : { loras: [] };
  $("loras").hidden = !model.loras.length;
  for (const name of model.loras) {
    const label = document.createElement("label"), slider = document.createElement("input"), value = document.createElement("output");
    Object.assign(slider, { type: "range", min: 0, max: 1.5, step: 0.05, value: 0, name });
    value.textContent = "0";
    slider.addEventListener("input", () => { value.textContent = slider.value; });
    slider.addEventListener("change", () => ask("update", { loras: strengths() }));
    label.append(name, slider, value);
    $("loras").append(label);
  }
}

$("prompt").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!live.connection) { start(); return; }
  const prompt = $("text").value.trim();
  if (prompt) ask("update", { prompt });
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("prompt").requestSubmit(); }
});
$("pause").addEventListener("click", () => ask($("pause").getAttribute("aria-pressed") === "true" ? "resume" : "pause"));
$("shot").addEventListener("click", shot);
$("free").addEventListener("click", () => live.steering.letGo());
$("reset").addEventListener("click", () => ask("reset"));
$("stop").addEventListener("click", () => ask("stop"));
$("seed").addEventListener("change", () => ask("seed", { seed: Math.max(0, Math.floor(Number($("seed").value)) || 0) }));
$("dice").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 1e6);
  $("seed").dispatchEvent(new Event("change"));
});
$("steps").addEventListener("input", () => { $("steps-value").textContent = $("steps").value; });
$("steps").addEventListener("change", () => ask("update", { steps: Number($("steps").value) }));
$("again").addEventListener("click", () => { notice(""); live.connection?.close(); live.connection = null; start(); });
$("image").addEventListener("change", () => picture($("image").files[0] ?? null));
$("image-clear").addEventListener("click", () => picture(null));
$("record").addEventListener("click", record);
$("share").addEventListener("click", async () => {
  const link = `${location.origin}/#watch=${live.created.watch_token}`;
  try {
    await navigator.clipboard.writeText(link);
    notice("The link to watch along was copied.", { mild: true });
  } catch {
    notice(`Others can watch at ${link}`, { mild: true });
  }
});

function picture(chosen) {
  live.image = chosen;
  $("image-name").textContent = chosen ? `${chosen.name}${live.connection ? " (for the next start or shot)" : ""}` : "";
  $("image-clear").hidden = !chosen;
  if (!chosen) $("image").value = "";
}

// Keep what is streamed, from the last keyframe on, until it is pressed again.
function record() {
  if (!live.recording) {
    const samples = [], begun = Date.now();
    live.recording = {
      samples,
      size: 0,
      add(sample) { samples.push(sample); this.size += sample.data.length; },
      clock() {
        const past = Math.floor((Date.now() - begun) / 1000);
        return `${Math.floor(past / 60)}:${String(past % 60).padStart(2, "0")}`;
      },
    };
    live.group.forEach((sample) => live.recording.add(sample));
  } else {
    const { samples } = live.recording;
    live.recording = null;
    const from = samples.findIndex((sample) => sample.key);
    if (from >= 0) {
      live.file = file(samples.slice(from));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(live.file);
      link.download = `livereel-${new Date().toISOString().slice(0, 19).replaceAll(":", "-")}.mp4`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    }
  }
  pressed("record", live.recording !== null);
  $("record").textContent = live.recording ? "Save" : "Record";
  $("recording").hidden = live.recording === null;
}

for (const example of EXAMPLES) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = example.replace(/ on a .*/, "");
  button.title = example;
  button.addEventListener("click", () => { $("text").value = example; $("prompt").requestSubmit(); });
  $("examples").append(button);
}

offer();
const kept = sessionStorage.getItem("resume");
if (hash.has("watch")) begin({ watch: hash.get("watch") });
else if (kept) begin({ resume: kept, last_frame: -1 });
