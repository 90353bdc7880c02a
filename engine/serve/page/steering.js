// Leading the stream's object: by a pointer on the picture, or by the arrow keys over it.

const LEAST_MS = 80;
const TOLD_A_CHUNK = 8;
const SPEED = 0.5; // shares of the picture that an arrow key moves in a second
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// `tell` is called with positions [x, y], in shares of the picture, or with none to let go.
export class Steering {
  constructor(stage, mark, tell) {
    Object.assign(this, { stage, mark, tell, stream: null, place: null, held: null });
    this.keys = new Set();
    this.told = -Infinity;
    stage.addEventListener("pointerdown", (event) => this.press(event));
    stage.addEventListener("pointermove", (event) => this.held === event.pointerId && this.point(event));
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => this.release(event));
    document.addEventListener("keydown", (event) => this.down(event));
    document.addEventListener("keyup", (event) => this.keys.delete(event.key));
    addEventListener("blur", () => this.keys.clear());
  }

  // A stream is there whose object can be led, or (null) none.
  follow(stream) {
    this.stream = stream;
    this.held = null;
    this.keys.clear();
    this.stage.classList.toggle("led", stream !== null);
    this.stage.tabIndex = stream === null ? -1 : 0;
    if (stream === null) this.forget();
  }

  letGo() {
    this.held = null;
    this.keys.clear();
    if (this.stream) this.tell([]);
    this.forget();
  }

  forget() {
    clearTimeout(this.timer);
    this.place = this.timer = null;
    this.mark.hidden = true;
  }

  // The object is where it was told to go.
  arrived() {
    if (this.held === null && !this.keys.size && !this.timer) this.mark.classList.add("there");
  }

  // Where the picture lies on the stage.
  frame() {
    const box = this.stage.getBoundingClientRect(), { width, height } = this.stream;
    const scale = Math.min(box.width / width, box.height / height);
    const [w, h] = [width * scale, height * scale];
    return { left: box.left + (box.width - w) / 2, top: box.top + (box.height - h) / 2, width: w, height: h, box };
  }

  press(event) {
    if (!this.stream || event.button !== 0 || event.target.closest("button")) return;
    event.preventDefault();
    this.stage.focus({ preventScroll: true });
    this.stage.setPointerCapture(event.pointerId);
    this.held = event.pointerId;
    this.point(event);
  }

  point({ clientX, clientY }) {
    const { left, top, width, height } = this.frame();
    this.aim((clientX - left) / width, (clientY - top) / height);
  }

  release(event) {
    if (this.held === event.pointerId) this.held = null;
  }

  down(event) {
    if (!this.stream || !this.stage.matches(":hover, :focus") || event.target.matches("input, textarea")) return;
    if (event.key === "Escape") { this.letGo(); return; }
    if (!(event.key in WAYS)) return;
    event.preventDefault();
    if (event.repeat || this.keys.has(event.key)) return;
    this.keys.add(event.key);
    if (this.keys.size === 1) this.move(performance.now());
  }

  // One step on for the keys that are down, and so on with each picture of the screen.
  move(before) {
    requestAnimationFrame(() => {
      if (!this.stream || !this.keys.size) return;
      const now = performance.now(), way = (SPEED * Math.min(now - before, 100)) / 1000;
      let [x, y] = this.place ?? [0.5, 0.5];
      for (const key of this.keys) { x += WAYS[key][0] * way; y += WAYS[key][1] * way; }
      this.aim(...(this.stream.control_wraps ? [x - Math.floor(x), y - Math.floor(y)] : [x, y]));
      this.move(now);
    });
  }

  // Show at once where it shall go, and tell it: the newest place, a few times for each chunk.
  aim(x, y) {
    this.place = [x, y].map((share) => Math.round(1e4 * Math.min(1, Math.max(0, share))) / 1e4);
    const { left, top, width, height, box } = this.frame();
    this.mark.style.left = `${left - box.left + this.place[0] * width}px`;
    this.mark.style.top = `${top - box.top + this.place[1] * height}px`;
    this.mark.classList.remove("there");
    this.mark.hidden = false;
    if (this.timer) return;
    const every = Math.max(LEAST_MS, (1000 * this.stream.chunk_frames) / this.stream.fps / TOLD_A_CHUNK);
    this.timer = setTimeout(() => {
      this.timer = null;
      this.told = performance.now();
      if (this.place) this.tell([this.place]);
    }, Math.max(0, this.told + every - performance.now()));
  }
}
