// The socket /v1/stream: text frames are JSON, binary frames a header of 32 bytes and H.264.

export const KEYFRAME = 1, CATCH_UP = 2, GAP = 4;
const HEADER = 32;
const WAITS = [150, 400, 1000, 2000, 3000, 5000, 5000, 5000];

export function parse(buffer) {
  const view = new DataView(buffer);
  return {
    flags: view.getUint8(1),
    span: view.getUint16(2, true),
    chunk: view.getUint32(8, true),
    frame: Number(view.getBigUint64(16, true)),
    pts: Number(view.getBigUint64(24, true)),
    data: new Uint8Array(buffer, HEADER, view.getUint32(12, true)),
  };
}

// Events: "created", "frame", "message" (any other), "cut" (it will come back), "closed" (it won't).
export class Connection extends EventTarget {
  constructor(request) {
    super();
    this.request = request;
    this.created = null;
    this.last = -1;
    this.waiting = new Map();
    this.tries = 0;
    this.over = false;
    this.count = 0;
    this.backlog = () => 0;
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/v1/stream`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.answered = false;
    socket.onopen = () => socket.send(JSON.stringify(this.hello()));
    socket.onmessage = ({ data }) => this.socket === socket && this.take(data);
    socket.onclose = (event) => this.socket === socket && this.lost(event);
  }

  hello() {
    const id = { type: "session.create", event_id: this.newId() };
    const token = this.created?.resume_token;
    if (token) return { ...id, resume: token, last_frame: this.last, pending: [...this.waiting.keys()] };
    return { ...id, ...this.request };
  }

  newId() {
    return `${Date.now().toString(36)}-${(this.count++).toString(36)}`;
  }

  // Send a control; gives its event id.
  control(type, fields = {}) {
    const message = { type: `session.${type}`, event_id: this.newId(), ...fields };
    this.waiting.set(message.event_id, message);
    this.send(message);
    return message.event_id;
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  close() {
    this.over = true;
    this.socket?.close();
  }

  take(data) {
    if (typeof data !== "string") {
      const packet = parse(data);
      this.last = Math.max(this.last, packet.frame);
      this.say("frame", packet);
      this.send({ type: "session.ack", frame: packet.frame, decode_queue: this.backlog() });
      return;
    }
    const message = JSON.parse(data);
    switch (message.type) {
      case "session.created":
        this.created = message;
        this.answered = true;
        this.tries = 0;
        this.say("created", message);
        return;
      case "event.rejected":
        if (message.code === "lost" && this.waiting.has(message.event_id)) {
          this.send(this.waiting.get(message.event_id));
          return;
        }
      // fall through
      case "event.applied":
        message.asked = this.waiting.get(message.event_id);
        this.waiting.delete(message.event_id);
        break;
      case "session.ended":
        if (message.reason !== "draining") this.over = true;
        break;
      case "error":
        if (!this.answered) {
          if (message.code === "gone" || !message.retryable) this.over = true;
          this.wait = 1000 * (message.retry_after_s ?? 1);
        }
        break;
    }
    this.say("message", message);
  }

  lost(event) {
    if (this.over || (event.code === 1008 && this.answered) || this.tries >= WAITS.length) {
      this.say("closed", { code: event.code });
      return;
    }
    const wait = this.wait ?? WAITS[this.tries];
    this.tries += 1;
    this.wait = null;
    this.say("cut", { wait });
    setTimeout(() => this.over || this.open(), wait);
  }

  say(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
